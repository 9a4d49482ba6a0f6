"""The twenty candidates of the paper's two searches (Appendix B): rank, layer, formula.

Each is a name that every norm option takes. Thirteen are different: of others it is said which
layer they are.
"""

import json

from evonorm_plugins.text_table import aligned

EXAMPLES = """
examples:
  evonorm search candidates
  evonorm search candidates --json
"""


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(args):
    from evonorm_plugins.layers.candidates import CANDIDATES
    from evonorm_plugins.layers.graph.known import KNOWN

    rows = [
        {"name": name, "series": name[10], "rank": int(name[11:]), "layer": layer}
        | {"formula": str(KNOWN[layer])}
        for name, layer in CANDIDATES.items()
    ]
    if args.json:
        print(json.dumps(rows))
        return
    head = ("name", "the same as", "formula")
    cells = [(r["name"], r["layer"] * (r["layer"] != r["name"]), r["formula"]) for r in rows]
    print(aligned([head, *cells], left=(0, 1, 2)))
