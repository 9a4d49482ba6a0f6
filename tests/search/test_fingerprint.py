"""Layers that do the same to fixed inputs are one layer."""

import random

import pytest

from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.layers.graph.parse import parse
from evonorm_plugins.search.fingerprint import SIZE, TOLERANCE, fingerprints
from evonorm_plugins.search.mutation import random_graph

B0 = "x / max(std_{b,w,h}(x), v1 * x + std_{w,h}(x))"


def distance(a, b):
    """Between a layer and the nearest of the four that signs make of another."""
    (own, *_), others = fingerprints(parse(a)), fingerprints(parse(b))
    return min(max(abs(x - y) for x, y in zip(own, other, strict=True)) for other in others)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        # Identities that structure does not know.
        ("std_{w,h}(x) + x", "rms_{w,h}(x - mean_{w,h}(x)) + x"),
        ("max(x, 0)", "(x + sqrt(square(x))) * sigmoid(0)"),
        ("x * (v1 + x)", "x * v1 + square(x)"),
        # Constants.
        ("tanh(max(v1, sigmoid(v0)) * x)", "tanh(v1 * x)"),
        ("x / std_{b,w,h}(x) + tanh(0) * x", "x / (std_{b,w,h}(x) * exp(0))"),
        ("max(x, std_{w,h}(v1))", "max(x, 0)"),  # sqrt(eps)
        # Gamma and beta absorb these, and the layers start as the same.
        ("tanh(x)", "tanh(x) * v1 + v0"),
        (B0, f"v0 - ({B0}) / v1"),
        # So do convolutions these.
        ("tanh(x)", "tanh(-x)"),
        ("max(x, 0)", "max(-x, 0)"),
        ("max(x, 0)", "-max(-x, 0)"),
        (B0, "x / max(std_{b,w,h}(x), std_{w,h}(x) - v1 * x)"),
    ],
)
def test_one_layer(a, b):
    assert parse(a).digest() != parse(b).digest()
    assert distance(a, b) < TOLERANCE / 10


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("tanh(x)", "tanh(x) * sigmoid(0)"),  # another start
        ("tanh(x)", "tanh(x) + v1"),
        ("max(x, 0)", "max(x, v0)"),
        ("tanh(x)", "tanh(v1 * x)"),
        ("x", "x * std_{b,w,h}(x)"),
        ("x * std_{b,w,h}(x)", "x * std_{w,h}(x)"),
        ("x / std_{w,h}(x)", "x / std_{w,h,c/g}(x)"),
        ("x / std_{w,h,c}(x)", "x / std_{w,h,c/g}(x)"),
        ("x / std_{w,h}(x)", "x / rms_{w,h}(x)"),
        ("x + mean_{w,h}(x)", "x + mean_{b,w,h}(x)"),
    ],
)
def test_two_layers(a, b):
    assert distance(a, b) > 100 * TOLERANCE


def test_the_paper_s_layers_are_those_of_their_digests():
    """The names of one graph have one fingerprint, all others differ.

    But for two of Appendix B.1 that are equal where the signs of input and output are turned.
    """
    found = {g.digest(): fingerprints(g) for g in KNOWN.values() if g is not KNOWN["Random"]}
    turned = {KNOWN["Candidate-B2"].digest(), KNOWN["Candidate-B5"].digest()}
    for one, (own, *_) in found.items():
        for other, theirs in found.items():
            gap = min(max(abs(x - y) for x, y in zip(own, f, strict=True)) for f in theirs)
            assert (gap <= TOLERANCE) is (one == other or {one, other} == turned)


@pytest.mark.parametrize(
    "formula",
    [
        "v0 + v1",
        "mean_{b,w,h}(v1)",
        "exp(exp(exp(x)))",
        # 0 up to rounding, whose sign decides.
        "x / (mean_{w,h}(x + v1) - mean_{w,h}(x) - v1)",
    ],
)
def test_none_where_nothing_can_be_said(formula):
    assert fingerprints(parse(formula)) is None


def test_graphs_with_one_digest_have_one_fingerprint():
    rng = random.Random(0)
    graphs = [random_graph(rng) for _ in range(40)]
    found = [fingerprints(g) for g in graphs]
    assert [fingerprints(g.canonical()) for g in graphs] == found
    assert {len(f) for four in found if four for f in four} == {SIZE}
