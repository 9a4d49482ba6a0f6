"""Gradients of every order, and what autograd keeps for them."""

import copy

import pytest
import torch
from torch import nn

from evonorm_plugins import recompute


class Changed(nn.Module):
    """A copy of a layer, and what is done to its output."""

    def __init__(self, layer, change):
        super().__init__()
        self.layer, self.change = copy.deepcopy(layer), change

    def forward(self, x):
        return self.change(self.layer(x))


@pytest.mark.one_impl
@pytest.mark.parametrize("training", [True, False])
def test_numerical_gradients(own, training, make, draw):
    layer = make(own, dtype=torch.float64).train(training)
    keys = [k for k, _ in layer.named_parameters()]
    x = draw(2, 8, 2, 3, dtype=torch.float64).requires_grad_()

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(keys, parameters, strict=True)), x)

    args = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(function, args, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, args, fast_mode=True)


def kept_for_backward(layer, x):
    """Bytes autograd keeps besides x and the parameters, by storage."""
    known = {t.untyped_storage().data_ptr() for t in [x, *layer.parameters()]}
    kept = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    return sum(kept.values()), y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("apply_act", [True, False])
def test_keeps_the_input_and_statistics_alone(own, apply_act, dtype, make, draw):
    layer = make(own, apply_act=apply_act)
    x = draw(4, 8, 16, 16, dtype=dtype).requires_grad_()
    kept, y = kept_for_backward(layer, x)
    assert y.requires_grad
    # Five numbers of 4 bytes per sample and channel; the input is 8,192 numbers.
    assert kept <= 5 * 4 * 8 * 4


@pytest.mark.parametrize("name", ["BN-ReLU", "GN-ReLU", "LN-ReLU"])
def test_relu_keeps_a_byte_an_element(name, make, draw):
    layer = make(name)
    x = draw(4, 8, 16, 16).requires_grad_()
    without, _ = kept_for_backward(make(name, apply_act=False), x)
    kept, _ = kept_for_backward(layer, x)
    assert kept <= without + x.numel()


def test_relu_as_torchs(draw):
    """Zeros, infinite and undefined numbers included, and the gradients where they meet."""
    x = torch.tensor([-1.0, -0.0, 0.0, 2.0, float("inf"), float("-inf"), float("nan")])
    for dy in (torch.ones(7), torch.full((7,), float("inf")), torch.full((7,), float("nan"))):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = recompute.relu(a), torch.relu(b)
        y.backward(dy)
        expected.backward(dy)
        torch.testing.assert_close((y, a.grad), (expected, b.grad), equal_nan=True)


@pytest.mark.parametrize(
    "change", [torch.relu_, lambda y: y.mul_(0.5), lambda y: y.add_(1)], ids=["relu", "mul", "add"]
)
@pytest.mark.parametrize("apply_act", [True, False])
def test_output_may_be_overwritten(every, apply_act, change, make, draw, gradients):
    layer = make(every, apply_act=apply_act)
    x, dy = draw(3, 8, 5, 7), draw(3, 8, 5, 7)
    expected = gradients(Changed(layer, lambda y: change(y.clone())), x, dy)
    actual = gradients(Changed(layer, change), x, dy)
    torch.testing.assert_close(actual, expected)
    with torch.no_grad():
        y = layer.eval()(x)
        assert torch.equal(change(y), change(layer(x).clone()))


def test_overwritten_input_is_refused(own, make, draw):
    layer = make(own)
    x = draw(3, 8, 5, 7).requires_grad_() * 1
    y = layer(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_twice_through_one_graph(own, make, draw):
    layer = make(own)
    x = draw(3, 8, 5, 7).requires_grad_()
    y, dy = layer(x), draw(3, 8, 5, 7)
    first = torch.autograd.grad(y, x, dy, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(y, x, dy)[0])


def test_creating_a_graph_changes_no_gradient(every, make, draw):
    layer = make(every)
    x = draw(3, 8, 5, 7).requires_grad_()
    y, dy = layer(x), draw(3, 8, 5, 7)
    inputs = [x, *layer.parameters()]
    plain = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    graph = torch.autograd.grad(y, inputs, dy, create_graph=True)
    torch.testing.assert_close([g.detach() for g in graph], list(plain))


@pytest.mark.one_impl
def test_gradient_penalty(own, make, draw):
    """The gradient of a gradient's norm, as a numerical derivative along one direction."""
    layer = make(own, dtype=torch.float64)
    x, direction = draw(3, 8, 3, 4, dtype=torch.float64), draw(3, 8, 3, 4, dtype=torch.float64)

    def penalty(x, create_graph=False):
        x = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=create_graph)
        return dx.square().sum(), x

    value, x = penalty(x, create_graph=True)
    (gradient,) = torch.autograd.grad(value, x)
    step = 1e-6
    above, below = penalty(x + step * direction)[0], penalty(x - step * direction)[0]
    expected = (above - below) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-6)
