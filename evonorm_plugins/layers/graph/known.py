"""The layers of the paper as graphs (arXiv 2004.02967, Tables 2, 3 and 5, Section 3, Appendix B).

Gamma and beta of a norm that an activation follows are v1 and v0, which start as they do; the
graph's own affine transform comes after the activation. The S layers are of the search space S.

Where the activation has a v of its own, all three parameters go into v0, v1 and that affine
transform, which then compute the same at the start and after (:data:`COMBINED`). PixelNorm-ReLU is
no graph: no primitive aggregates over c alone.
"""

from evonorm_plugins.layers.graph.graph import Graph


def _scaled(over):
    """(x - mean) / std * v1."""
    centred = ("add", "x", ("neg", (f"mean_{{{over}}}", "x")))
    return ("mul", ("div", centred, (f"std_{{{over}}}", "x")), "v1")


def _normalized(over):
    """(x - mean) / std * v1 + v0."""
    return ("add", _scaled(over), "v0")


def _relu(z):
    return ("max", z, "zero")


def _swish(z):
    return ("mul", z, ("sigmoid", z))


def _over_max(z):
    return ("div", "x", ("max", ("std_{b,w,h}", "x"), z))


_RMS, _GROUP_RMS = ("rms_{w,h}", "x"), ("rms_{w,h,c/g}", "x")
_LAYER_RMS = ("rms_{w,h,c}", "x")
_BY_GROUP_RMS = ("div", "x", _GROUP_RMS)

# Name of a registered layer -> the same as a graph.
KNOWN = {
    "EvoNormB0": Graph.of(_over_max(("add", ("mul", "v1", "x"), ("std_{w,h}", "x")))),
    # The constant 1 is exp(0).
    "EvoNormB1": Graph.of(_over_max(("mul", ("add", "x", ("exp", "zero")), _RMS))),
    "EvoNormB2": Graph.of(_over_max(("add", _RMS, ("neg", "x")))),
    "EvoNormS0": Graph.of(
        ("div", ("mul", "x", ("sigmoid", ("mul", "v1", "x"))), ("std_{w,h,c/g}", "x"))
    ),
    "EvoNormS1": Graph.of(("div", _swish("x"), ("std_{w,h,c/g}", "x"))),
    "EvoNormS2": Graph.of(("div", _swish("x"), _GROUP_RMS)),
    # Of Appendix B; layers/candidates.py has the ranks, those of the layers above included.
    "Candidate-B2": Graph.of(_over_max(("add", "x", _LAYER_RMS))),
    "Candidate-B3": Graph.of(("neg", ("div", _swish("x"), ("std_{b,w,h}", "x")))),
    "Candidate-B4": Graph.of(_over_max(("mul", "x", _RMS))),
    "Candidate-B5": Graph.of(_over_max(("add", _LAYER_RMS, ("neg", "x")))),
    "Candidate-B9": Graph.of(_over_max(("add", "x", ("std_{w,h}", "x")))),
    "Candidate-S1": Graph.of(("div", ("mul", "x", ("tanh", ("sigmoid", "x"))), _GROUP_RMS)),
    "Candidate-S10": Graph.of(("mul", _BY_GROUP_RMS, ("sigmoid", ("max", "x", _BY_GROUP_RMS)))),
    "BN-ReLU": Graph.of(_relu(_normalized("b,w,h"))),
    "BN-PReLU": Graph.of(("max", _scaled("b,w,h"), "v0")),
    "BN-Swish": Graph.of(_swish(_normalized("b,w,h"))),
    "BN-Swish-1": Graph.of(_swish(_normalized("b,w,h"))),
    "GN-ReLU": Graph.of(_relu(_normalized("w,h,c/g"))),
    "GN-Swish": Graph.of(_swish(_normalized("w,h,c/g"))),
    "GN-Swish-1": Graph.of(_swish(_normalized("w,h,c/g"))),
    "LN-ReLU": Graph.of(_relu(_normalized("w,h,c"))),
    "FRN": Graph.of(("max", ("mul", ("div", "x", _RMS), "v1"), "v0")),
    "Random": Graph.of(("sqrt", ("std_{w,h}", ("sigmoid", "x")))),
    "Random + rej": Graph.of(("tanh", ("max", "x", ("tanh", "x")))),
    "RS + rej": Graph.of(("div", _relu("x"), ("rms_{b,w,h}", "x"))),
}


def _rectified(gamma, beta, v):
    """max(gamma n + beta, v) = max(gamma n, v - beta) + beta."""
    return {"v1": gamma, "v0": v - beta, "bias": beta}


def _gated(gamma, beta, v):
    """z sigmoid(v z) = (v z) sigmoid(v z) / v, with z = gamma n + beta; v is not 0."""
    return {"v1": v * gamma, "v0": v * beta, "weight": 1 / v}


# Name of a layer with gamma, beta and v -> what the graph's parameters are of these; those that are
# not named stay as they start.
COMBINED = {
    "BN-PReLU": _rectified,
    "FRN": _rectified,
    "BN-Swish": _gated,
    "GN-Swish": _gated,
}

# What the paper's rejection is to refuse: the first is not stable, the second learns nothing.
REJECTED = {
    "unstable": Graph.of(("add", ("tanh", "x"), ("neg", ("mean_{b,w,h}", _relu("x"))))),
    "zero": Graph.of(("add", "zero", "zero")),
}
