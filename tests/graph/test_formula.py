"""Formulas as they are to be read."""

import unicodedata
from xml.etree import ElementTree

import pytest

from evonorm_plugins.layers.graph.formula import latex, mathml, text
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN

NORMALIZED = ("div", ("add", "x", ("neg", ("mean_{w,h}", "x"))), ("std_{w,h}", "x"))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (("add", "x", "zero"), "x"),
        (("add", ("neg", "x"), "v0"), "v0 - x"),
        (("add", ("neg", "x"), ("neg", "v0")), "-x - v0"),
        (("add", "x", ("neg", ("add", "v0", "v1"))), "x - (v0 + v1)"),
        (("neg", ("mul", "x", "v1")), "-(x * v1)"),
        (("mul", "x", ("neg", "v1")), "x * (-v1)"),
        (("div", ("mul", "x", "v1"), ("mul", "x", "v0")), "x * v1 / (x * v0)"),
        (("div", ("add", "x", "v1"), "v0"), "(x + v1) / v0"),
        (("mul", ("add", "x", ("exp", "zero")), "v1"), "(x + 1) * v1"),
        (("max", "x", "zero"), "max(x, 0)"),
        (("sqrt", ("log", ("square", "x"))), "sqrt(log(square(x)))"),
        (("std_{w,h,c/g}", ("sigmoid", "x")), "std_{w,h,c/g}(sigmoid(x))"),
        (
            ("mul", NORMALIZED, ("sigmoid", NORMALIZED)),
            "z * sigmoid(z), z = (x - mean_{w,h}(x)) / std_{w,h}(x)",
        ),
        (
            ("mul", ("mul", ("tanh", "x"), ("exp", ("tanh", "x"))), ("exp", ("tanh", "x"))),
            "z1 * z2 * z2, z2 = exp(z1), z1 = tanh(x)",
        ),
    ],
)
def test_text(expression, expected):
    graph = Graph.of(expression)
    assert text(graph) == str(graph) == expected


def test_what_is_written_twice_is_one():
    graph = Graph([["tanh", 0], ["tanh", 0], ["exp", 2], ["mul", 4, 5]])
    assert str(graph) == "z * z, z = tanh(x)"


def test_long_sharing_stays_short():
    """2^60 terms if written out."""
    nodes = [["add", 0, 3]] + [["mul", k, k] for k in range(4, 64)]
    assert len(str(Graph(nodes))) < 2000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("EvoNormB0", "x / max(std_{b,w,h}(x), v1 * x + std_{w,h}(x))"),
        ("EvoNormB1", "x / max(std_{b,w,h}(x), (x + 1) * rms_{w,h}(x))"),
        ("EvoNormB2", "x / max(std_{b,w,h}(x), rms_{w,h}(x) - x)"),
        ("EvoNormS0", "x * sigmoid(v1 * x) / std_{w,h,c/g}(x)"),
        ("BN-ReLU", "max((x - mean_{b,w,h}(x)) / std_{b,w,h}(x) * v1 + v0, 0)"),
        ("Random + rej", "tanh(max(x, tanh(x)))"),
    ],
)
def test_the_papers_layers(name, expected):
    assert str(KNOWN[name]) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (("div", "x", ("std_{w,h}", "x")), r"\frac{x}{\sqrt{s^2_{w,h}\left(x\right)}}"),
        (("rms_{w,h}", "x"), r"\sqrt{\mu_{w,h}\left(x^2\right)}"),
        (("rms_{w,h}", "v0"), r"\sqrt{\mu_{w,h}\left(\left(v_0\right)^2\right)}"),
        (("mean_{w,h,c/g}", ("exp", "x")), r"\mu_{w,h,c/g}\left(e^{x}\right)"),
        (("mul", "x", ("sigmoid", ("mul", "v1", "x"))), r"x \sigma\left(v_1 x\right)"),
        (("mul", "x", ("add", "x", "v0")), r"x \left(x + v_0\right)"),
        (("add", "x", ("neg", ("tanh", "x"))), r"x - \tanh\left(x\right)"),
        (("mul", "x", ("neg", "v0")), r"x \left(-v_0\right)"),
        (("max", "x", "zero"), r"\max\left(x, 0\right)"),
        (
            ("log", "x"),
            r"\operatorname{sign}\left(x\right) \ln\left|x\right|",
        ),
        (("sqrt", "x"), r"\operatorname{sign}\left(x\right) \sqrt{\left|x\right|}"),
        (("square", ("exp", "x")), r"\left(e^{x}\right)^2"),
    ],
)
def test_latex(expression, expected):
    assert latex(Graph.of(expression)) == expected


@pytest.mark.parametrize("name", KNOWN)
def test_latex_can_be_set(name):
    mathtext = pytest.importorskip("matplotlib.mathtext")
    written = latex(KNOWN[name]).replace(r"\left", "").replace(r"\right", "")
    mathtext.MathTextParser("path").parse(f"${written}$")


def read(element):
    """MathML as one line."""
    parts = [read(child) for child in element]
    shapes = {"mfrac": "[{}]/[{}]", "msub": "{}_{}", "msup": "{}^{}", "msubsup": "{}_{}^{}"}
    if element.tag in shapes:
        return shapes[element.tag].format(*parts)  # an IndexError where there are too few
    written = (element.text or "") + "".join(parts)
    return f"sqrt[{written}]" if element.tag == "msqrt" else written


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (("div", ("add", "x", "v0"), "v1"), "[x+v_0]/[v_1]"),
        (("square", ("add", "x", "v0")), "(x+v_0)^2"),
        (("square", "x"), "x^2"),
        (("rms_{w,h}", "x"), "sqrt[μ_w, h(x^2)]"),
        (("std_{b,w,h}", ("exp", "x")), "sqrt[s_b, w, h^2(e^x)]"),
        (("mean_{w,h,c/g}", "x"), "μ_w, h, c/g(x)"),
        (("mul", "x", ("neg", "v0")), "x(-v_0)"),
        (("mul", ("add", "x", "v0"), ("exp", "zero")), "(x+v_0).1"),
        (("add", ("exp", "x"), ("neg", ("add", "x", "v1"))), "e^x-(x+v_1)"),
        (("max", ("sigmoid", "x"), "zero"), "max(s(x),0)"),
        (("sqrt", "x"), "sign(x)sqrt[|x|]"),
        (("log", "x"), "sign(x)ln|x|"),
        (("mul", ("tanh", "x"), ("sigmoid", ("tanh", "x"))), "zs(z),z=tanh(x)"),
    ],
)
def test_mathml(expression, expected):
    root = ElementTree.fromstring(mathml(Graph.of(expression)))
    assert root.tag == "math"
    plain = {"MINUS SIGN": "-", "GREEK SMALL LETTER SIGMA": "s", "DOT OPERATOR": "."}
    letters = {unicodedata.lookup(name): letter for name, letter in plain.items()}
    assert read(root).translate(str.maketrans(letters)) == expected


@pytest.mark.parametrize("name", KNOWN)
def test_mathml_can_be_read(name):
    root = ElementTree.fromstring(mathml(KNOWN[name]))
    children = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3}
    assert all(len(e) == children[e.tag] for e in root.iter() if e.tag in children)
