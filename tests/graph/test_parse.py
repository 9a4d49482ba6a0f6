"""Formulas back to the graphs that they were printed from."""

import random

import pytest

from evonorm_plugins.errors import GraphError
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN, REJECTED
from evonorm_plugins.layers.graph.parse import parse
from evonorm_plugins.search.mutation import random_graph


@pytest.mark.parametrize("name", [*KNOWN, *REJECTED])
def test_known_layers(name):
    graph = {**KNOWN, **REJECTED}[name]
    assert parse(str(graph)).digest() == graph.digest()


def test_random_layers():
    rng = random.Random(0)
    for _ in range(2000):
        graph = random_graph(rng, "B")
        assert parse(str(graph)).digest() == graph.digest(), str(graph)


@pytest.mark.parametrize(
    ("formula", "expression"),
    [
        ("x", ("add", "x", "zero")),
        ("  x/std_{ b, w,h }( x ) ", ("div", "x", ("std_{b,w,h}", "x"))),
        ("-x*v1", ("mul", ("neg", "x"), "v1")),
        ("x - (v0 - 1)", ("add", "x", ("neg", ("add", "v0", ("neg", ("exp", "zero")))))),
        ("x / v0 / v1", ("div", ("div", "x", "v0"), "v1")),
        ("max(a, b), a = tanh(b), b = exp(x)", ("max", ("tanh", ("exp", "x")), ("exp", "x"))),
    ],
)
def test_what_people_write(formula, expression):
    assert parse(formula).digest() == Graph.of(expression).digest()


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("", "cannot read the formula ''"),
        ("x +", "cannot read the formula 'x \\+'"),
        ("x * y", "unknown name 'y'; there are x, v0, v1, 0 and 1"),
        ("x ** 2", "'x \\*\\* 2' is not part of a formula"),
        ("2 * x", "'2' is not part of a formula"),
        ("True * x", "'True' is not part of a formula"),
        ("relu(x)", "unknown function 'relu'; there are max, sigmoid, tanh"),
        ("std_{b,w}(x)", "unknown function 'std_{b,w}'"),
        ("std(x)", "unknown function 'std'"),
        ("max(x)", "max takes 2 values, got 1"),
        ("tanh(x, v0)", "tanh takes 1 values, got 2"),
        ("max(a=x)", "is not part of a formula"),
        ("__import__('os').remove('x')", "two underscores in a row"),
        ("std__0(x)", "two underscores in a row"),
        ("x.real", "'x.real' is not part of a formula"),
        ("std_{b,w,h}1(x)", "cannot read the formula 'std_{b,w,h}1\\(x\\)'"),
        ("_{b,w,h}(x)", "cannot read the formula '_{b,w,h}\\(x\\)'"),
        ("z, z = z + x", "'z' is defined by itself"),
        ("a, a = b + x, b = a + x", "'a' is defined by itself"),
        ("x * v0, v0 = tanh(x)", "'v0' cannot be given a meaning"),
        ("z * z, z = x, z = v0", "'z' cannot be given a meaning"),
        ("(" * 500 + "x" + ")" * 500, "cannot read the formula"),
        ("-" * 900 + "x", "a graph has 1 to 100 nodes|nested too deeply"),
    ],
)
def test_what_is_no_formula(formula, message):
    with pytest.raises(GraphError, match=message):
        parse(formula)


@pytest.mark.parametrize(
    "formula",
    [
        "-" * 5000 + "x",
        "x, z = " + "-" * 5000 + "x",
        "(" * 5000 + "x" + ")" * 5000,
        "tanh(" * 3000 + "x" + ")" * 3000,
        "x" + " + x" * 4000,
        "x" + "[0]" * 5000,
        "x" + " < x" * 3000,
        "x" + " + x" * 9000,
    ],
    ids=lambda formula: formula[:8],
)
def test_what_is_nested_without_end_is_refused_in_one_line(formula):
    with pytest.raises(GraphError) as error:
        parse(formula)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_names_that_double_do_not_take_for_ever():
    """Written out this is a sum of 2^60 terms; as a graph it has 60 nodes."""
    names = ", ".join(f"a{k} = a{k + 1} + a{k + 1}" for k in range(60))
    assert len(parse(f"a0, {names}, a60 = x").nodes) == 60
