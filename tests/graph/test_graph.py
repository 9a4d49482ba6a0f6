"""Genotypes: what is refused, what is the same, files, random graphs and changes to them."""

import ast
import copy
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from evonorm_plugins.errors import GraphError
from evonorm_plugins.layers.graph import graph as graph_module
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.operations import COMMUTATIVE, OPERATIONS, SPACES
from evonorm_plugins.search.mutation import mutate, random_graph

B0 = Graph.of(
    ("div", "x", ("max", ("std_{b,w,h}", "x"), ("add", ("mul", "v1", "x"), ("std_{w,h}", "x"))))
)


def test_nodes():
    assert B0.nodes == (
        ("std_{b,w,h}", 0),
        ("mul", 3, 0),
        ("std_{w,h}", 0),
        ("add", 5, 6),
        ("max", 4, 7),
        ("div", 0, 8),
    )
    assert Graph([["add", 0, 1]]) == Graph((("add", 0, 1),))
    assert hash(Graph([["add", 0, 1]])) == hash(Graph((("add", 0, 1),)))
    # Genotypes differ where their nodes do, even where the layer is the same.
    assert Graph([["add", 0, 2]]) != Graph([["add", 2, 0]])
    with pytest.raises(AttributeError):
        B0.nodes = ()


def test_copies():
    assert pickle.loads(pickle.dumps(B0)) == copy.deepcopy(B0) == B0


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([["add", 0, 5], ["neg", 4]], r"node 4: input 5 of add .*make a cycle; it can take 0 to 3"),
        ([["neg", 4]], r"node 4: input 4 of neg does not come before it"),
        ([["neg", -1]], r"node 4: input -1 of neg is no node; .*0 x, 1 zero, 2 v0, 3 v1"),
        ([["neg", True]], r"node 4: input True"),
        ([["neg", "x"]], r"node 4: input 'x'"),
        ([["neg", 0], ["relu", 4]], r"node 5: unknown operation 'relu'; known: add, mul, div, max"),
        ([[7, 0]], r"node 4: unknown operation 7"),
        ([["add", 0]], r"node 4: add takes 2 inputs, got 1"),
        ([["neg", 0, 1]], r"node 4: neg takes 1 inputs, got 2"),
        (
            [["std_{c}", 0]],
            r"node 4: 'std_\{c\}' has an unknown index set \{c\}; those of std are b",
        ),
        ([["std", 0]], r"node 4: 'std' has an unknown index set"),
        (["neg"], r"node 4 must be \[operation, input, ...\], got 'neg'"),
        ([[]], r"node 4 must be"),
        ([], r"1 to 100 nodes beside 0 x, 1 zero, 2 v0, 3 v1, got 0"),
        ([["neg", 0]] * 101, r"got 101"),
        ("neg", r"got 'neg'"),
    ],
)
def test_refused(nodes, message):
    with pytest.raises(GraphError, match=message):
        Graph(nodes)
    with pytest.raises(GraphError, match=message if isinstance(nodes, list) else "must be a list"):
        Graph.from_json({**B0.to_json(), "nodes": nodes})


def test_refused_expression():
    with pytest.raises(GraphError, match="unknown node 'v2'; the initial ones are 0 x, 1 zero"):
        Graph.of(("add", "x", "v2"))
    with pytest.raises(GraphError, match=r"unknown node \(\)"):
        Graph.of(("add", "x", ()))
    with pytest.raises(GraphError, match="unknown operation 'sub'"):
        Graph.of(("sub", "x", "v0"))


def test_search_space():
    B0.check_space("B")
    with pytest.raises(
        GraphError, match=r"node 4: std_\{b,w,h\} is not in search space S, .*\(w,h,c\), \(w,h\), "
    ):
        B0.check_space("S")
    Graph([["std_{b,w,h}", 0], ["neg", 0]]).check_space("S")  # the first is dead
    with pytest.raises(ValueError, match="unknown search space 'T'"):
        B0.check_space("T")


def test_dead_nodes():
    graph = Graph([["exp", 0], ["neg", 0], ["tanh", 4], ["mul", 5, 3]])
    assert graph.live() == [5, 7]
    assert graph.pruned() == Graph([["neg", 0], ["mul", 4, 3]])
    assert (graph.uses("v1"), graph.uses("v0")) == (True, False)
    assert graph.digest() == graph.pruned().digest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("add", "x", "v0"), ("add", "v0", "x")),
        (("max", ("neg", "x"), ("tanh", "x")), ("max", ("tanh", "x"), ("neg", "x"))),
        (("add", "x", "zero"), ("max", "x", "x")),
        (("add", "zero", ("exp", "x")), ("exp", "x")),
        (("neg", ("neg", ("exp", "x"))), ("exp", "x")),
        (("mean_{w,h}", ("mean_{w,h}", "x")), ("mean_{w,h}", "x")),
        (("mean_{b,w,h}", "v0"), ("add", "v0", "zero")),
        (("mean_{w,h}", ("mul", "v1", ("std_{w,h,c}", "x"))), ("mul", ("std_{w,h,c}", "x"), "v1")),
    ],
)
def test_same_structure(one, other):
    one, other = Graph.of(one), Graph.of(other)
    assert one.digest() == other.digest()
    assert one.canonical() == other.canonical()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("div", "x", "v1"), ("div", "v1", "x")),
        (("add", "x", "v0"), ("add", "x", "v1")),
        (("add", "x", "v0"), ("mul", "x", "v0")),
        (("std_{w,h}", "x"), ("std_{w,h,c}", "x")),
        (("mean_{b,w,h}", ("mean_{w,h}", "x")), ("mean_{w,h}", ("mean_{b,w,h}", "x"))),
        (("mean_{w,h,c/g}", "v0"), ("add", "v0", "zero")),
        (("std_{w,h}", ("std_{w,h}", "x")), ("std_{w,h}", "x")),
        (("mean_{w,h}", ("div", "v1", "x")), ("div", "v1", "x")),
        # The same operations at mirrored places.
        (
            ("div", ("div", "x", ("exp", "x")), ("div", ("tanh", "x"), "v1")),
            ("div", ("div", "x", ("tanh", "x")), ("div", ("exp", "x"), "v1")),
        ),
        (("div", "x", ("mul", "zero", "x")), ("div", "x", "zero")),  # x may be infinite
    ],
)
def test_other_structure(one, other):
    assert Graph.of(one).digest() != Graph.of(other).digest()


def test_digest_is_the_same_everywhere():
    """Stores keep it."""
    assert B0.digest() == "5c5fc0057faf29659bb7f5e0d3653fbb"


def disguised(graph, rng):
    """The same layer: other order of nodes and operands, dead nodes, parts written twice."""
    nodes, place = [], {k: k for k in range(4)}

    def add(op, *inputs):
        nodes.append((op, *inputs))
        return len(nodes) + 3

    def write(k):
        if k in place and rng.random() < 0.7:
            return place[k]
        if k >= 4:
            op, *inputs = graph.nodes[k - 4]
            if rng.random() < 0.3:
                add(rng.choice(["exp", "tanh"]), rng.randrange(len(nodes) + 4))
            inputs = [write(i) for i in inputs]
            if op in COMMUTATIVE:
                rng.shuffle(inputs)
            place[k] = add(op, *inputs)
        return place[k]

    last = write(len(graph.nodes) + 3)
    if rng.random() < 0.5:
        last = add("neg", add("neg", last))
    if rng.random() < 0.5 or last < len(nodes) + 3:
        add("add", *rng.sample([last, 1], 2))
    return Graph(nodes)


def test_digest_of_disguised_graphs(reference):
    """Equal digests, and the canonical graph computes the same numbers."""
    rng = random.Random(0)
    x = np.random.default_rng(0).normal(size=(2, 4, 2, 3))
    for _ in range(150):
        graph = random_graph(rng)
        other = disguised(graph, rng)
        assert other.digest() == graph.digest()
        assert other.canonical() == graph.canonical()
        assert graph.canonical().digest() == graph.digest()
        assert graph.canonical().canonical() == graph.canonical()
        Graph(graph.canonical().nodes)  # is one
        options = {"v0": np.arange(4.0), "v1": 2.0, "groups": 2}
        expected = reference(graph, x, **options)
        for same in (other, graph.canonical(), graph.pruned()):
            np.testing.assert_allclose(reference(same, x, **options), expected, rtol=1e-9)


def test_digests_of_different_layers_differ(reference):
    """Graphs with one digest compute one thing; those with others mostly do not."""
    rng = random.Random(1)
    x = np.random.default_rng(0).normal(size=(2, 4, 2, 3))
    outputs = {}
    for _ in range(400):
        graph = random_graph(rng, nodes=3)
        y = reference(graph, x, v0=np.arange(4.0), v1=np.arange(1.0, 5.0), groups=2)
        np.testing.assert_allclose(outputs.setdefault(graph.digest(), y), y, rtol=1e-12)
    assert len(outputs) > 150


@pytest.mark.parametrize(
    ("expression", "depends"),
    [
        (("add", "x", "zero"), True),
        (("mul", "v0", ("exp", "v1")), False),
        (("mul", "zero", ("exp", "x")), False),
        (("div", ("tanh", "zero"), "x"), False),
        (("div", "x", "zero"), True),
        (("exp", ("mul", "x", "zero")), False),
        (("std_{w,h}", ("mean_{w,h}", "x")), False),
        (("std_{b,w,h}", ("mean_{w,h}", "x")), True),
        (("std_{w,h,c}", ("mean_{b,w,h}", "x")), True),
        (("rms_{w,h}", ("mean_{w,h}", "x")), True),
        (("mean_{b,w,h}", "zero"), False),
    ],
)
def test_depends_on_x(expression, depends):
    assert Graph.of(expression).depends_on_x() is depends


def test_what_does_not_depend_on_x_does_not(reference):
    rng, numbers = random.Random(2), np.random.default_rng(0)
    a, b = numbers.normal(size=(2, 2, 4, 2, 3))
    graphs = [g for g in (random_graph(rng) for _ in range(300)) if not g.depends_on_x()]
    assert len(graphs) > 100
    for graph in graphs:
        y, z = (reference(graph, x, v0=np.arange(4.0)) for x in (a, b))
        finite = np.isfinite(y) & np.isfinite(z)
        np.testing.assert_allclose(y[finite], z[finite], rtol=1e-9, atol=1e-12)


def test_file(tmp_path):
    path = tmp_path / "layer.json"
    B0.save(path, about={"accuracy": [0.5, 0.25]})
    assert Graph.load(path) == B0
    saved = json.loads(path.read_text())
    assert saved["about"] == {"accuracy": [0.5, 0.25]}
    assert saved["formula"] == str(B0)
    assert saved["digest"] == B0.digest()
    assert [p.name for p in tmp_path.iterdir()] == ["layer.json"]
    assert '    ["add", 5, 6],\n' in path.read_text()  # a node a line
    rng = random.Random(0)
    for _ in range(20):
        graph = random_graph(rng)
        assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "torch"}, 'needs "format": "evonorm_plugins layer graph"'),
        ({"version": 2}, "version 2 is not 1"),
        ({"nods": []}, r"unknown keys \['nods'\]"),
        ({"nodes": 3}, '"nodes" must be a list, got 3'),
        ({"digest": "abc"}, "its digest is 'abc', that of its nodes '5c5f"),
        ({"nodes": [["neg", 9]]}, "node 4: input 9 of neg"),
    ],
)
def test_files_that_are_refused(change, message, tmp_path):
    path = tmp_path / "layer.json"
    path.write_text(json.dumps({**B0.to_json(), **change}))
    with pytest.raises(GraphError, match=message) as error:
        Graph.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"3", b"[" * 100_000, b"9" * 5000],
    ids=lambda c: repr(c[:4]),
)
def test_files_that_are_no_graph(content, tmp_path):
    path = tmp_path / "layer.json"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=r"layer\.json"):
        Graph.load(path)
    for other in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(GraphError, match="cannot read the layer graph"):
            Graph.load(other)


@pytest.mark.parametrize("space", SPACES)
def test_random_graphs(space):
    rng = random.Random(0)
    graphs = [random_graph(rng, space) for _ in range(3000)]
    again = random.Random(0)
    assert graphs[:50] == [random_graph(again, space) for _ in range(50)]
    assert {len(g.nodes) for g in graphs} == {10}
    used = {}
    for graph in graphs:
        assert Graph(graph.nodes) == graph
        graph.check_space(space)
        for op, *_ in graph.nodes:
            used[op] = used.get(op, 0) + 1
    # Uniform: 30,000 draws of 23 or 20 operations.
    expected = 30_000 / len(SPACES[space])
    assert set(used) == set(SPACES[space])
    assert all(0.85 * expected < n < 1.15 * expected for n in used.values())
    inputs = np.bincount([i for g in graphs for i in g.nodes[-1][1:]], minlength=13)
    assert all(0.8 * inputs.mean() < n < 1.2 * inputs.mean() for n in inputs)


@pytest.mark.parametrize("space", SPACES)
def test_mutation(space):
    rng = random.Random(0)
    graph = random_graph(rng, "S")
    places, operations = [0] * 10, set()
    for _ in range(3000):
        child = mutate(graph, rng, space)
        assert Graph(child.nodes) == child
        child.check_space(space)
        changed = [k for k in range(10) if child.nodes[k] != graph.nodes[k]]
        assert len(changed) <= 1
        for k in changed:
            places[k] += 1
            operations.add(child.nodes[k][0])
    assert operations == set(SPACES[space])
    assert all(230 < n < 370 for n in places)
    assert mutate(graph, random.Random(3), times=0) == graph
    one, two = random.Random(5), random.Random(5)
    assert mutate(graph, one, times=2) == mutate(mutate(graph, two), two)
    with pytest.raises(ValueError, match="unknown search space"):
        mutate(graph, rng, "b")


def test_genotypes_need_no_torch():
    folder = Path(graph_module.__file__).parent
    for name in ("operations", "structure", "graph", "formula", "parse"):
        tree = ast.parse((folder / f"{name}.py").read_text())
        imported = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in [getattr(node, "module", None) or node.names[0].name]
        }
        assert not any("torch" in module for module in imported), name
        assert not {m for m in imported if m.endswith((".module", ".primitives"))}, name


def test_every_operation_has_a_formula():
    for op, inputs in OPERATIONS.items():
        graph = Graph([[op, *([0, 3][:inputs])]])
        assert "x" in str(graph)
