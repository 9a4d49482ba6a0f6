"""The primitives of Table 1 against numbers worked out by hand and by loops."""

import math

import numpy as np
import pytest
import torch

from evonorm_plugins.layers.graph.operations import AGGREGATIONS, OPERATIONS, SPACES, operations_of
from evonorm_plugins.layers.graph.primitives import apply

EPS = 1e-5


def value(op, *numbers):
    """A primitive of single numbers."""
    return apply(op, *(torch.full((1, 1, 1, 1), float(n), dtype=torch.float64) for n in numbers))


def test_table_1():
    elementwise = ["add", "mul", "div", "max", "neg", "sigmoid", "tanh", "exp", "log", "square"]
    assert [op for op in OPERATIONS if op not in AGGREGATIONS] == [*elementwise, "sqrt"]
    assert len(AGGREGATIONS) == 3 * 4
    assert [op for op, n in OPERATIONS.items() if n == 2] == ["add", "mul", "div", "max"]
    assert SPACES["B"] == tuple(OPERATIONS)
    without_batch = [op for op in OPERATIONS if "b,w,h" not in op]
    assert SPACES["S"] == tuple(without_batch)
    assert (len(SPACES["B"]), len(SPACES["S"])) == (23, 20)
    with pytest.raises(ValueError, match="unknown search space 'C'; there are B, S"):
        operations_of("C")


@pytest.mark.parametrize(
    ("op", "numbers", "expected"),
    [
        ("add", (2, -3), -1),
        ("mul", (2, -3), -6),
        ("div", (3, -2), -1.5),
        ("max", (2, -3), 2),
        ("max", (-2, -3), -2),
        ("neg", (2,), -2),
        ("sigmoid", (math.log(3),), 0.75),
        ("tanh", (math.log(3),), 0.8),
        ("exp", (math.log(3),), 3),
        ("log", (math.e**2,), 2),
        ("log", (-(math.e**2),), -2),
        ("log", (1 / math.e,), -1),
        ("log", (-1 / math.e,), 1),
        ("square", (-3,), 9),
        ("sqrt", (9,), 3),
        ("sqrt", (-9,), -3),
        ("sqrt", (0.25,), 0.5),
    ],
)
def test_elementwise(op, numbers, expected):
    assert value(op, *numbers).item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("op", "numbers", "expected"),
    [
        ("div", (3, 0), 3 / EPS),
        ("div", (3, EPS / 10), 3 / EPS),
        ("div", (3, -EPS / 10), -3 / EPS),
        ("div", (0, 0), 0),
        ("log", (0,), 0),
        ("log", (EPS / 10,), math.log(EPS)),
        ("log", (-EPS / 10,), -math.log(EPS)),
        ("sqrt", (0,), 0),
        ("sqrt", (EPS / 4,), math.sqrt(EPS) / 4),
        ("sqrt", (-EPS / 4,), -math.sqrt(EPS) / 4),
        ("rms_{w,h}", (0,), math.sqrt(EPS)),
        ("std_{w,h}", (7,), math.sqrt(EPS)),
        ("mean_{w,h}", (7,), 7),
    ],
)
def test_epsilon(op, numbers, expected):
    assert value(op, *numbers).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("op", ["div", "log", "sqrt"])
def test_finite_slope_where_the_formula_has_none(op):
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    y = apply(op, *([torch.ones_like(x), x] if op == "div" else [x]))
    (slope,) = torch.autograd.grad(y, x)
    assert slope.item() == pytest.approx(1 / math.sqrt(EPS) if op == "sqrt" else 0)


@pytest.mark.parametrize("groups", [3, 4, 32])
@pytest.mark.parametrize("op", AGGREGATIONS)
def test_aggregation(op, groups, reference_aggregation, device):
    """Of 6 channels; 4 groups do not divide them, 3 do."""
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64) + 1
    y = apply(op, x.to(device), groups=groups, eps=0.01).cpu()
    expected = reference_aggregation(op, x.numpy(), groups, 0.01)
    np.testing.assert_allclose(y.expand_as(x).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("op", AGGREGATIONS)
def test_nothing_of_full_size_is_made(op):
    x = torch.randn(3, 8, 4, 5)
    axes = {"b,w,h": (1, 8), "w,h,c": (3, 1), "w,h": (3, 8), "w,h,c/g": (3, 8)}
    assert apply(op, x, groups=4).shape == (*axes[AGGREGATIONS[op][1]], 1, 1)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 8, 1, 1), (3, 1, 1, 1), (3, 8, 1, 1), (3, 8, 4, 5)], ids=str
)
@pytest.mark.parametrize("op", AGGREGATIONS)
def test_aggregation_of_what_is_broadcast(op, shape):
    """What is kept small aggregates as what it stands for."""
    x = torch.randn(shape, dtype=torch.float64)
    whole = x.expand(3, 8, 4, 5)
    expected = apply(op, whole.contiguous(), groups=4)
    torch.testing.assert_close(
        apply(op, x, groups=4).expand_as(whole), expected.expand_as(whole), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("op", OPERATIONS)
def test_gradients(op):
    """Both orders, at points where none of the functions has a kink."""
    inputs = [torch.randn(2, 4, 2, 1, dtype=torch.float64) for _ in range(OPERATIONS[op])]
    inputs = [(x + 0.3 * x.sign()).requires_grad_() for x in inputs]

    def function(*inputs):
        return apply(op, *inputs, groups=2)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_variance_of_a_far_mean():
    """Centred: the mean of squares minus the squared mean would be noise."""
    x = torch.randn(4, 8, 9, 7) * 1e-2 + 1e3
    for op in (op for op in AGGREGATIONS if op.startswith("std")):
        exact = apply(op, x.double(), groups=4)
        torch.testing.assert_close(apply(op, x, groups=4).double(), exact, rtol=1e-3, atol=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("op", AGGREGATIONS)
def test_empty_batch(op):
    y = apply(op, torch.zeros(0, 8, 4, 5), groups=4)
    assert y.shape[0] == (1 if "b,w,h" in op else 0)
    assert y.isnan().all()


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (1, 3, 1, 1)])
def test_gradient_of_equal_values(shape):
    """Half to each, as torch's maximum has it."""
    a = torch.randint(-1, 2, (2, 3, 2, 2)).double().requires_grad_()
    b = torch.randint(-1, 2, shape).double().requires_grad_()
    assert (a == b).any()
    grad = torch.randn(2, 3, 2, 2).double()
    found = torch.autograd.grad(apply("max", a, b), (a, b), grad)
    torch.testing.assert_close(found, torch.autograd.grad(torch.maximum(a, b), (a, b), grad))
