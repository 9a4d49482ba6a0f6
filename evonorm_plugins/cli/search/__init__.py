"""Search for norm-activation layers, on this machine or a Ray cluster, and look at what was found.

A search writes every result to one file, its store; the other commands read that file, while the
search runs or after it. docs/search.md explains both.
"""

COMMANDS = {
    "run": "search, from the beginning or from where it stopped",
    "try": "put one layer through the filters and train it, as a search does",
    "filters": "measure what the filters of a search cost, refuse and refuse wrongly",
    "layer": "write a formula as a layer file, which every norm option takes",
    "top": "the best layers of a search",
    "show": "one candidate, or the whole search in numbers",
    "watch": "follow a search: counts, rates, best layers, ancestors of the best",
    "export": "write a candidate as a layer file, which every norm option takes",
    "report": "one page of HTML with all that a search found",
    "plot": "pictures of one search, or of several side by side",
    "rerank": "train whole models with each of the best layers, and keep three",
    "ranking": "the layers of such a sweep, the best first",
    "candidates": "the twenty candidates of the paper's Appendix B",
    "simulate": "try the driver with workers that only wait",
}
EXAMPLES = """
examples:
  evonorm search run --config B data=cifar10-train.zip hours=1
  evonorm search top output/search_B.sqlite
  evonorm search export output/search_B.sqlite 1234 layer.json
  evonorm search run --help
"""
