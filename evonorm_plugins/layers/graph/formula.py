"""Layer graphs as formulas, in text, in LaTeX and in MathML. Needs no torch."""

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


def mathml(graph):
    """The same as an element ``<math>``, which browsers typeset."""
    return f"<math>{_formula(graph, _MathML)}</math>"


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
            return style.one, _ATOM
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

    definitions = [style.equal.join((names[k], write(k, whole=True)[0])) for k in reversed(named)]
    return style.comma.join([write(output, whole=True)[0], *definitions])


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
    one, equal, comma = "1", " = ", ", "

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
    one, equal, comma = "1", " = ", ", "

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


def _mo(text, **attributes):
    given = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f"<mo{given}>{text}</mo>"


def _row(*parts):
    return f"<mrow>{''.join(parts)}</mrow>"


def _called(name, *arguments):
    # Only around what is high: browsers stretch brackets to twice the height of a square root.
    high = {} if any("<mfrac>" in a for a in arguments) else {"stretchy": "false"}
    separator = _mo(",", separator="true")
    return _row(name, _mo("(", **high), separator.join(arguments), _mo(")", **high))


def _bracketed_mathml(part, at_least):
    return part[0] if part[1] >= at_least else _called("", part[0])


class _MathML:
    one, equal = "<mn>1</mn>", _mo("=")
    comma = f"{_mo(',', separator='true')}<mspace width='1em'/>"

    @staticmethod
    def initial(name):
        if name in ("x", "zero"):
            return {"x": "<mi>x</mi>", "zero": "<mn>0</mn>"}[name]
        return f"<msub><mi>v</mi><mn>{name[1]}</mn></msub>"

    @staticmethod
    def name(name):
        return "<mi>z</mi>" if name == "z" else f"<msub><mi>z</mi><mn>{name[1:]}</mn></msub>"

    @staticmethod
    def sub(a, b):
        minus = _mo("\N{MINUS SIGN}")
        return _row(_bracketed_mathml(a, _SUM), minus, _bracketed_mathml(b, _PRODUCT))

    @staticmethod
    def operation(op, parts):
        a, b = parts[0][0], parts[-1][0]
        if op == "add":
            return _row(a, _mo("+"), b), _SUM
        if op == "mul":
            # Before a number with a sign between, which it would else be an index of.
            dot = _mo("\N{DOT OPERATOR}") if b.startswith("<mn>") else ""
            return _row(dot.join(_bracketed_mathml(part, _PRODUCT) for part in parts)), _PRODUCT
        if op == "div":
            return f"<mfrac>{_row(a)}{_row(b)}</mfrac>", _ATOM
        if op == "neg":
            minus = _mo("\N{MINUS SIGN}", form="prefix")
            return _row(minus, _bracketed_mathml(parts[0], _PRODUCT)), _SUM
        if op in AGGREGATIONS:
            moment, over = AGGREGATIONS[op]
            below = f"<mtext>{over.replace(',', ', ')}</mtext>"
            mu = f"<msub><mi>\N{GREEK SMALL LETTER MU}</mi>{below}</msub>"
            if moment == "mean":
                return _called(mu, a), _ATOM
            variance = f"<msubsup><mi>s</mi>{below}<mn>2</mn></msubsup>"
            under = _called(variance, a) if moment == "std" else _called(mu, _squared(parts[0]))
            return f"<msqrt>{under}</msqrt>", _ATOM
        sign = _called("<mi>sign</mi>", a)
        fences = (_mo("|", fence="true", form=form) for form in ("prefix", "postfix"))
        size = _row(next(fences), a, next(fences))
        written = {
            "max": _called("<mi>max</mi>", a, b),
            "sigmoid": _called("<mi>\N{GREEK SMALL LETTER SIGMA}</mi>", a),
            "tanh": _called("<mi>tanh</mi>", a),
            "exp": f"<msup><mi>e</mi>{_row(a)}</msup>",
            "log": _row(sign, "<mi>ln</mi>", size),
            "square": _squared(parts[0]),
            "sqrt": _row(sign, f"<msqrt>{size}</msqrt>"),
        }
        return written[op], _PRODUCT if op in ("log", "sqrt") else _ATOM


def _squared(part):
    base = part[0] if part[0].startswith(("<mi>", "<mn>")) else _called("", part[0])
    return f"<msup>{base}<mn>2</mn></msup>"
