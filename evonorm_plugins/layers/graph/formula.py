"""Layer graphs as formulas, in text and in LaTeX. Needs no torch."""

import functools
from collections import Counter

from evonorm_plugins.layers.graph.operations import AGGREGATIONS, INITIAL
from evonorm_plugins.layers.graph.structure import keys_of

# How tightly what is printed holds together: a sum, a product, an atom.
_SUM, _PRODUCT, _ATOM = 1, 2, 3


def text(graph):
    """``x / max(std_{b,w,h}(x), v1 * x + std_{w,h}(x))``.

    What is used several times gets a name: ``z * sigmoid(z), z = x / std_{w,h}(x)``. ``sqrt`` and
    ``log`` are the paper's, sign(x) sqrt|x| and sign(x) ln|x|.
    """
    return _formula(graph, _Text)


def latex(graph):
    """The same in LaTeX, for math mode, in the paper's notation."""
    return _formula(graph, _Latex)


def _formula(graph, style):
    keys, _ = keys_of(graph.nodes)
    first_with = {}
    for k, key in enumerate(keys):
        first_with.setdefault(key, k)
    same = [first_with[key] for key in keys]  # equal values are one
    output = same[-1]

    uses, order, seen = Counter(), [], set()

    def visit(k):
        if k in seen or k < len(INITIAL):
            return
        seen.add(k)
        for i in graph.nodes[k - len(INITIAL)][1:]:
            uses[same[i]] += 1
            visit(same[i])
        order.append(k)

    visit(output)
    one = {k for k in order if graph.nodes[k - len(INITIAL)] == ("exp", INITIAL.index("zero"))}
    named = [k for k in order if uses[k] > 1 and k not in one]
    names = {k: style.name("z" if len(named) == 1 else f"z{n}") for n, k in enumerate(named, 1)}

    def write(k, whole=False):
        if k < len(INITIAL):
            return style.initial(INITIAL[k]), _ATOM
        if k in names and not whole:
            return names[k], _ATOM
        if k in one:
            return "1", _ATOM
        op, *inputs = graph.nodes[k - len(INITIAL)]
        inputs = [same[i] for i in inputs]
        if op == "add":
            # a + (-b) is a - b, whichever comes first.
            inputs.sort(key=lambda i: _negated(graph, i, names) is not None)
            subtracted = _negated(graph, inputs[1], names)
            if subtracted is not None:
                minus = same[subtracted]
                return style.sub(write(inputs[0]), write(minus)), _SUM
        return style.operation(op, [write(i) for i in inputs])

    definitions = [f"{names[k]} = {write(k, whole=True)[0]}" for k in reversed(named)]
    return ", ".join([write(output, whole=True)[0], *definitions])


def _negated(graph, k, names):
    """What node k is the negative of, or None."""
    if k < len(INITIAL) or k in names:
        return None
    op, *inputs = graph.nodes[k - len(INITIAL)]
    return inputs[0] if op == "neg" else None


def _closed(part, at_least, left="(", right=")"):
    written, strength = part
    return written if strength >= at_least else f"{left}{written}{right}"


_bracketed = functools.partial(_closed, left=r"\left(", right=r"\right)")


class _Text:
    @staticmethod
    def initial(name):
        return "0" if name == "zero" else name

    @staticmethod
    def name(name):
        return name

    @staticmethod
    def sub(a, b):
        return f"{_closed(a, _SUM)} - {_closed(b, _PRODUCT)}"

    @staticmethod
    def operation(op, parts):
        if op == "add":
            if parts[1][1] == _SUM != parts[0][1]:  # fewer brackets: a + b + c is (a + b) + c
                parts = parts[::-1]
            return f"{_closed(parts[0], _SUM)} + {_closed(parts[1], _PRODUCT)}", _SUM
        if op == "mul":
            return f"{_closed(parts[0], _PRODUCT)} * {_closed(parts[1], _ATOM)}", _PRODUCT
        if op == "div":
            return f"{_closed(parts[0], _PRODUCT)} / {_closed(parts[1], _ATOM)}", _PRODUCT
        if op == "neg":
            return f"-{_closed(parts[0], _ATOM)}", _SUM
        return f"{op}({', '.join(p[0] for p in parts)})", _ATOM


class _Latex:
    @staticmethod
    def initial(name):
        return {"x": "x", "zero": "0", "v0": "v_0", "v1": "v_1"}[name]

    @staticmethod
    def name(name):
        return name if name == "z" else f"z_{{{name[1:]}}}"

    @staticmethod
    def sub(a, b):
        return f"{_bracketed(a, _SUM)} - {_bracketed(b, _PRODUCT)}"

    @staticmethod
    def operation(op, parts):
        a = parts[0][0]
        if op == "add":
            return f"{a} + {parts[1][0]}", _SUM
        if op == "mul":
            return f"{_bracketed(parts[0], _PRODUCT)} {_bracketed(parts[1], _PRODUCT)}", _PRODUCT
        if op == "div":
            return rf"\frac{{{a}}}{{{parts[1][0]}}}", _ATOM
        if op == "neg":
            return f"-{_bracketed(parts[0], _PRODUCT)}", _SUM
        if op in AGGREGATIONS:
            moment, over = AGGREGATIONS[op]
            written = {
                "mean": rf"\mu_{{{over}}}\left({a}\right)",
                "rms": rf"\sqrt{{\mu_{{{over}}}\left({_power(parts[0])}\right)}}",
                "std": rf"\sqrt{{s^2_{{{over}}}\left({a}\right)}}",
            }
            return written[moment], _ATOM
        written = {
            "max": rf"\max\left({a}, {parts[-1][0]}\right)",
            "sigmoid": rf"\sigma\left({a}\right)",
            "tanh": rf"\tanh\left({a}\right)",
            "exp": f"e^{{{a}}}",
            "log": rf"\operatorname{{sign}}\left({a}\right) \ln\left|{a}\right|",
            "square": _power(parts[0]),
            "sqrt": rf"\operatorname{{sign}}\left({a}\right) \sqrt{{\left|{a}\right|}}",
        }
        return written[op], _PRODUCT if op in ("log", "sqrt") else _ATOM


def _power(part):
    # Only a single letter is read right without brackets.
    return f"{part[0]}^2" if len(part[0]) == 1 else rf"\left({part[0]}\right)^2"
