"""What a node of a layer can be: names, numbers of inputs, search spaces. Needs no torch.

Source: Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers" (arXiv 2004.02967),
Table 1. :mod:`evonorm_plugins.layers.graph.primitives` computes them.
"""

# Nodes 0 to 3 of every graph. v0 and v1 are trainable, one number per channel, from 0 and from 1.
INITIAL = ("x", "zero", "v0", "v1")

UNARY = ("neg", "sigmoid", "tanh", "exp", "log", "square", "sqrt")
BINARY = ("add", "mul", "div", "max")
COMMUTATIVE = frozenset({"add", "mul", "max"})

# What an aggregation is over: b batch, w and h space, c channels, c/g those of a group.
INDEX_SETS = ("b,w,h", "w,h,c", "w,h", "w,h,c/g")
# mean: mu(x). rms: sqrt(mu(x^2)). std: sqrt(s^2(x)), the variance centred and biased.
MOMENTS = ("mean", "rms", "std")
# "std_{b,w,h}" -> ("std", "b,w,h")
AGGREGATIONS = {f"{m}_{{{over}}}": (m, over) for m in MOMENTS for over in INDEX_SETS}

# name -> number of inputs
OPERATIONS = {
    **dict.fromkeys(BINARY, 2),
    **dict.fromkeys(UNARY, 1),
    **dict.fromkeys(AGGREGATIONS, 1),
}

# Search space -> its operations. S leaves out the aggregations over the batch.
SPACES = {
    "B": tuple(OPERATIONS),
    "S": tuple(op for op in OPERATIONS if "b" not in AGGREGATIONS.get(op, ("", ""))[1]),
}


def operations_of(space):
    """Names of the operations of a search space.

    Raises:
        ValueError: there is no such space.
    """
    if space not in SPACES:
        raise ValueError(f"unknown search space {space!r}; there are {', '.join(SPACES)}")
    return SPACES[space]
