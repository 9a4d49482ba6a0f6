"""What the nodes of a graph compute, as far as structure tells: equal values, axes, dependence.

Nodes are those of :class:`evonorm_plugins.layers.graph.graph.Graph`. Needs no torch.
"""

from hashlib import blake2b

from evonorm_plugins.layers.graph.operations import AGGREGATIONS, COMMUTATIVE, INITIAL, OPERATIONS

# Axes that a value varies over, as bits.
BATCH, CHANNELS, SPACE = 1, 2, 4
_INITIAL_AXES = (BATCH | CHANNELS | SPACE, 0, CHANNELS, CHANNELS)
# Index set -> the axes that its aggregations leave, those that they are over.
_LEFT = {"b,w,h": CHANNELS, "w,h,c": BATCH, "w,h": BATCH | CHANNELS, "w,h,c/g": BATCH | CHANNELS}
_OVER = {
    "b,w,h": BATCH | SPACE,
    "w,h,c": SPACE | CHANNELS,
    "w,h": SPACE,
    "w,h,c/g": SPACE | CHANNELS,
}
# By operation, for the loop below: bytes that stand for it, its place in the order of operands, the
# axes it leaves, and for a mean those it is over.
_ORDER = {op: k + len(INITIAL) for k, op in enumerate(OPERATIONS)}
_TRAITS = {
    op: (
        op.encode() + b" ",
        _ORDER[op],
        _LEFT[AGGREGATIONS[op][1]] if op in AGGREGATIONS else ~0,
        _OVER[AGGREGATIONS[op][1]] if op.startswith("mean_") else None,
    )
    for op in OPERATIONS
}


def _key(size, order, content):
    # Sorts operands by size, then by operation; what is shown of canonical graphs begins with x.
    return bytes((size, order)) + blake2b(content, digest_size=16).digest()


INITIAL_KEYS = tuple(_key(1, k, name.encode()) for k, name in enumerate(INITIAL))


def keys_of(nodes):
    """``(keys, parts)``: what identifies the value of every node of a graph, as in a Merkle tree.

    ``keys[k]`` is that of node k, None where it is dead; equal keys are structurally equal values.
    ``parts[key]`` is ``(operation, key of an input, ...)``, operands in canonical order.
    """
    first = len(INITIAL_KEYS)
    last = first + len(nodes) - 1
    live = bytearray(last + 1)
    live[last] = 1
    for k in range(last, first - 1, -1):
        if live[k]:
            for i in nodes[k - first][1:]:
                live[i] = 1
    keys, parts = [*INITIAL_KEYS], {}
    axes = dict(zip(INITIAL_KEYS, _INITIAL_AXES, strict=True))
    zero = INITIAL_KEYS[1]
    for k in range(first, last + 1):
        if not live[k]:
            keys.append(None)
            continue
        node = nodes[k - first]
        op, a = node[0], keys[node[1]]
        name, order, left, over = _TRAITS[op]
        if len(node) == 3:
            b = keys[node[2]]
            if op in COMMUTATIVE:
                if b < a:
                    a, b = b, a
                if (op == "max" and a == b) or (op == "add" and zero in (a, b)):
                    keys.append(b if a == zero else a)
                    continue
            key = _key(min(255, 1 + a[0] + b[0]), order, name + a + b)
            parts[key] = (op, a, b)
            axes[key] = axes[a] | axes[b]
        else:
            if over is not None and not axes[a] & over:
                keys.append(a)
                continue
            if op == "neg" and a in parts and parts[a][0] == "neg":
                keys.append(parts[a][1])
                continue
            key = _key(min(255, 1 + a[0]), order, name + a)
            parts[key] = (op, a)
            axes[key] = axes[a] & left
        keys.append(key)
    return keys, parts


def axes_of(nodes):
    """For every node of a graph the axes it can vary over: bits BATCH, CHANNELS, SPACE."""
    axes = [*_INITIAL_AXES]
    for op, *inputs in nodes:
        over = 0
        for i in inputs:
            over |= axes[i]
        axes.append(over & _TRAITS[op][2])
    return axes


def depends_on_x(nodes):
    """See :meth:`evonorm_plugins.layers.graph.graph.Graph.depends_on_x`."""
    found = ["varies", "zero", "constant", "constant"]
    axes = axes_of(nodes)
    for op, *inputs in nodes:
        found.append(_dependence(op, [found[i] for i in inputs], axes[inputs[0]]))
    return found[-1] == "varies"


def _dependence(op, given, axes):
    """Of a node on x, from those of its inputs: "zero", "constant" or "varies"."""
    if op in AGGREGATIONS:
        moment, over = AGGREGATIONS[op]
        if moment == "std" and not axes & _OVER[over]:
            return "constant"
        return "constant" if given == ["zero"] and moment != "mean" else given[0]
    if op == "mul" and "zero" in given:
        return "zero"
    if op == "div" and given[0] == "zero":
        return "zero"
    if op in ("sigmoid", "exp") and given == ["zero"]:
        return "constant"
    if "varies" in given:
        return "varies"
    return "zero" if set(given) == {"zero"} and op != "div" else "constant"
