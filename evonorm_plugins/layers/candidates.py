"""The ten best layers of each of the paper's two searches (arXiv 2004.02967, Appendix B).

They are in the order that the proxy task gave them, before they were reranked (Section 5.2). Of the
twenty thirteen are different.
"""

# Name of a candidate, series and rank -> name of the layer it is: another's where the paper gave
# the layer a name later on, or where a candidate before it is the same.
CANDIDATES = {
    "Candidate-B1": "EvoNormB1",
    "Candidate-B2": "Candidate-B2",
    "Candidate-B3": "Candidate-B3",
    "Candidate-B4": "Candidate-B4",
    "Candidate-B5": "Candidate-B5",
    "Candidate-B6": "EvoNormB0",
    "Candidate-B7": "EvoNormB2",
    "Candidate-B8": "Candidate-B4",
    "Candidate-B9": "Candidate-B9",
    "Candidate-B10": "Candidate-B9",
    "Candidate-S1": "Candidate-S1",
    "Candidate-S2": "EvoNormS2",
    "Candidate-S3": "EvoNormS2",
    "Candidate-S4": "EvoNormS2",
    "Candidate-S5": "EvoNormS1",
    "Candidate-S6": "EvoNormS0",
    "Candidate-S7": "EvoNormS1",
    "Candidate-S8": "EvoNormS2",
    "Candidate-S9": "EvoNormS1",
    "Candidate-S10": "Candidate-S10",
}
# Those without another name, in their order; they are layer graphs.
UNNAMED = tuple(name for name, layer in CANDIDATES.items() if name == layer)


def names_of(layer: str) -> list[str]:
    """The candidates that a layer is, its own name aside."""
    return [name for name, same in CANDIDATES.items() if same == layer != name]
