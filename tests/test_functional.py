"""Every formula against numpy in float64, answers worked out by hand, and numerical gradients."""

import functools
import math

import numpy as np
import pytest
import torch

from evonorm_plugins import functional as F
from evonorm_plugins import statistics

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4, sigmoid(2 ln 3) = 9/10


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def over(axes, x):
    """Mean over ``axes`` that broadcasts against x."""
    return x.mean(axes, keepdims=True)


def std(axes, x, eps):
    return np.sqrt(over(axes, (x - over(axes, x)) ** 2) + eps)


def rms(axes, x, eps):
    return np.sqrt(over(axes, x**2) + eps)


def grouped(statistic, x, groups, eps):
    n, c, h, w = x.shape
    z = x.reshape(n, groups, c // groups, h, w)
    return np.broadcast_to(statistic((2, 3, 4), z, eps), z.shape).reshape(x.shape)


SILU = torch.nn.functional.silu
BWH, WH = (0, 2, 3), (2, 3)
# Function -> what it computes before gamma and beta, of x, the parameters in p, and eps.
REFERENCES = {
    "evonorm_s0": lambda x, p, e: x * sigmoid(p["v"] * x) / grouped(std, x, 3, e),
    "evonorm_s1": lambda x, p, e: x * sigmoid(x) / grouped(std, x, 3, e),
    "evonorm_s2": lambda x, p, e: x * sigmoid(x) / grouped(rms, x, 3, e),
    "evonorm_b0": lambda x, p, e: x / np.maximum(std(BWH, x, e), p["v"] * x + std(WH, x, e)),
    "evonorm_b1": lambda x, p, e: x / np.maximum(std(BWH, x, e), (x + 1) * rms(WH, x, e)),
    "evonorm_b2": lambda x, p, e: x / np.maximum(std(BWH, x, e), rms(WH, x, e) - x),
    "pixelnorm": lambda x, p, e: x / rms(1, x, e),
    "frn": lambda x, p, e: x / rms(WH, x, e),
    "random_layer": lambda x, p, e: np.sqrt(std(WH, sigmoid(x), e)) * np.ones_like(x),
    "random_rej_layer": lambda x, p, e: np.tanh(np.maximum(x, np.tanh(x))),
    "rs_rej_layer": lambda x, p, e: np.maximum(x, 0) / rms(BWH, x, e),
}


def call(name, x, weight, bias, v, **options):
    """The torch function with the statistics over the batch that it needs."""
    args = (x, weight, bias)
    if name in ("evonorm_s0", "evonorm_s1", "evonorm_s2"):
        options["groups"] = 3
    if name in ("evonorm_s0", "evonorm_b0"):
        args += (v,)
    if name.startswith("evonorm_b") or name == "rs_rej_layer":
        args += (F.batch_variance(x, centred=name != "rs_rej_layer")[0],)
    if name == "random_rej_layer":
        options.pop("eps", None)
    return getattr(F, name)(*args, **options)


def draw(*shape, grad=True):
    return torch.randn(shape, dtype=torch.float64).requires_grad_(grad)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("shape", [(3, 6, 5, 4), (2, 6, 1, 1), (1, 6, 3, 1)], ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_formula(name, shape, eps):
    x, weight, bias, v = draw(*shape), draw(6), draw(6), draw(6)
    actual = call(name, x, weight, bias, v, eps=eps).detach().numpy()
    numbers = {"v": v.detach().numpy()[:, None, None]}
    y = REFERENCES[name](x.detach().numpy(), numbers, eps)
    expected = y * weight.detach().numpy()[:, None, None] + bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-11)


def by_hand(values, n=1, c=1):
    return torch.tensor(values, dtype=torch.float64).view(n, c, 1, -1)


def one(value=1.0, c=1):
    return torch.full((c,), value, dtype=torch.float64)


BATCH = by_hand([1, -1, 3, -3], n=2)  # std_i and rms_i are 1 and 3
STD_B = one(5.0)  # its variance over the batch, and mean of squares
R5 = math.sqrt(5)
HAND = {
    "s0": (lambda: F.evonorm_s0(by_hand([1, -1]), one(), one(0), one(LN3)), [0.75, -0.25]),
    "s0, v = 0": (lambda: F.evonorm_s0(by_hand([1, -1]), one(), one(0), one(0)), [0.5, -0.5]),
    "s0, gamma 2, beta 1": (
        lambda: F.evonorm_s0(by_hand([1, -1]), one(2), one(1), one(LN3)),
        [2.5, 0.5],
    ),
    "s0, two groups": (
        lambda: F.evonorm_s0(
            by_hand([1, -1, 2, -2], c=2), one(1, 2), one(0, 2), one(0, 2), groups=2
        ),
        [0.5, -0.5, 0.5, -0.5],
    ),
    "s0, one group": (
        lambda: F.evonorm_s0(
            by_hand([1, -1, 3, -3], c=2), one(1, 2), one(0, 2), one(0, 2), groups=1
        ),
        [0.5 / R5, -0.5 / R5, 1.5 / R5, -1.5 / R5],
    ),
    "s1": (lambda: F.evonorm_s1(by_hand([LN3, 2 * LN3]), one(), one(0)), [1.5, 3.6]),
    "s2": (
        lambda: F.evonorm_s2(by_hand([LN3, 2 * LN3]), one(), one(0)),
        [0.75 / math.sqrt(2.5), 1.8 / math.sqrt(2.5)],
    ),
    "b0": (
        lambda: F.evonorm_b0(BATCH, one(), one(0), one(), STD_B),
        [1 / R5, -1 / R5, 0.5, -3 / R5],
    ),
    "b0, gamma 2, beta 1": (
        lambda: F.evonorm_b0(BATCH, one(2), one(1), one(), STD_B),
        [1 + 2 / R5, 1 - 2 / R5, 2, 1 - 6 / R5],
    ),
    "b0, another variance": (
        lambda: F.evonorm_b0(BATCH, one(), one(0), one(), one(100)),
        [0.1, -0.1, 0.3, -0.3],
    ),
    "b1": (
        lambda: F.evonorm_b1(BATCH, one(), one(0), STD_B),
        [1 / R5, -1 / R5, 0.25, -3 / R5],
    ),
    "b2": (
        lambda: F.evonorm_b2(BATCH, one(), one(0), STD_B),
        [1 / R5, -1 / R5, 3 / R5, -0.5],
    ),
    "affine": (lambda: F.channel_affine(by_hand([1, -1]), one(3), one(0.5)), [3.5, -2.5]),
    "pixelnorm": (
        lambda: F.pixelnorm(by_hand([3, -4], c=2), one(1, 2), one(0, 2)),
        [0.6 * math.sqrt(2), -0.8 * math.sqrt(2)],
    ),
    "pixelnorm_relu": (
        lambda: F.pixelnorm_relu(by_hand([3, -4], c=2), one(1, 2), one(0.1, 2)),
        [0.6 * math.sqrt(2) + 0.1, 0],
    ),
    "frn": (
        lambda: F.frn(by_hand([3, -4]), one(), one(0)),
        [0.6 * math.sqrt(2), -0.8 * math.sqrt(2)],
    ),
    "frn, threshold": (
        lambda: F.frn(by_hand([3, -4]), one(), one(0), one(-0.5)),
        [0.6 * math.sqrt(2), -0.5],
    ),
    "tlu": (
        lambda: F.tlu(by_hand([1, -1, 2, -2], c=2), torch.tensor([0.5, -1.5])),
        [1, 0.5, 2, -1.5],
    ),
    "swish": (
        lambda: F.swish(by_hand([LN3, LN3, 1, -1], c=2), torch.tensor([2, LN3]).double()),
        [0.9 * LN3, 0.9 * LN3, 0.75, -0.25],
    ),
    "random": (lambda: F.random_layer(by_hand([LN3, -LN3]), one(), one(0)), [0.5, 0.5]),
    "random + rej": (
        lambda: F.random_rej_layer(by_hand([1, -1]), one(), one(0)),
        [0.7615941559557649, -0.6420149920119997],
    ),
    "rs + rej": (lambda: F.rs_rej_layer(BATCH, one(), one(0), STD_B), [1 / R5, 0, 3 / R5, 0]),
}


@pytest.mark.parametrize("case", HAND)
def test_by_hand(case):
    compute, expected = HAND[case]
    # 1e-4 is for eps; the numbers above leave it out.
    assert compute().flatten().tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("channels", "groups", "effective"),
    [(48, 32, 24), (64, 32, 32), (8, 32, 8), (7, 3, 1), (1, 1, 1), (30, 16, 15), (1000, 32, 25)],
)
def test_effective_groups(channels, groups, effective):
    assert F.effective_groups(channels, groups) == effective


@pytest.mark.parametrize("name", [*REFERENCES, "pixelnorm_relu"])
def test_gradients(name):
    """As in training: x reaches the B series twice, the second time through the variance."""
    args = draw(2, 6, 2, 3), draw(6), draw(6), draw(6)
    assert torch.autograd.gradcheck(functools.partial(call, name), args)
    assert torch.autograd.gradgradcheck(functools.partial(call, name), args)


@pytest.mark.parametrize("name", ["evonorm_b0", "evonorm_b1", "evonorm_b2", "rs_rej_layer"])
def test_gradients_with_moving_variance(name):
    """As in inference, and with a gradient into the variance itself."""
    extra = (draw(6),) if name == "evonorm_b0" else ()
    args = draw(2, 6, 2, 3), draw(6), draw(6), *extra, torch.rand(6).double().requires_grad_()
    assert torch.autograd.gradcheck(getattr(F, name), args)
    assert torch.autograd.gradgradcheck(getattr(F, name), args)


@pytest.mark.parametrize("function", [F.frn, F.channel_affine, F.tlu, F.swish])
def test_gradients_of_pieces(function):
    x, a, b, c = draw(2, 6, 2, 3), draw(6), draw(6), draw(6)
    args = {F.frn: (x, a, b, c), F.channel_affine: (x, a, b)}.get(function, (x, a))
    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args)


@pytest.mark.parametrize("impl", ["torch", "auto"])
@pytest.mark.parametrize("shape", [(3, 6, 5, 4), (5, 6), (3, 6, 2, 2, 3)], ids=str)
@pytest.mark.parametrize(("act", "activation"), [("none", lambda z: z), ("silu", SILU)])
def test_batch_norm(act, activation, shape, impl):
    """Gamma, beta and the results as in torch, whose moving averages the statistics are for."""
    dtype = torch.float64 if impl == "torch" else torch.float32
    x, weight, bias = (torch.randn(s, dtype=dtype) for s in (shape, 6, 6))
    mean, var = torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)
    z = torch.nn.functional.batch_norm(x, mean, var, weight, bias, training=True, momentum=1)
    options = {"act": act, "impl": impl}
    y, new_mean, new_var = F.batch_norm_act_train(x, weight, bias, **options)
    torch.testing.assert_close((y, new_mean, new_var), (activation(z), mean, var))
    mean, var = mean + 1, var * 2
    z = torch.nn.functional.batch_norm(x, mean, var, weight, bias)
    y = F.batch_norm_act(x, mean, var, weight, bias, **options)
    torch.testing.assert_close(y, activation(z))


@pytest.mark.parametrize("impl", ["torch", "auto"])
def test_batch_norm_of_nothing(impl):
    x, one = torch.randn(0, 6, 5, 4, requires_grad=True), torch.ones(6, requires_grad=True)
    y, _, var = F.batch_norm_act_train(x, one, one, impl=impl)
    assert y.shape == x.shape
    assert var.isnan().all()
    for gradient in torch.autograd.grad(y.sum(), [x, one]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("centred", [True, False])
def test_batch_variance(centred):
    x = draw(3, 2, 4, 5)
    variance, count = F.batch_variance(x, centred=centred)
    a = x.detach().numpy()
    expected = a.var((0, 2, 3)) if centred else (a**2).mean((0, 2, 3))
    np.testing.assert_allclose(variance.detach().numpy(), expected, rtol=1e-12)
    assert count.item() == 60
    assert not count.requires_grad
    assert torch.autograd.gradcheck(lambda x: F.batch_variance(x, centred=centred)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: F.batch_variance(x, centred=centred)[0], x)


def test_gradient_of_batch_variance_by_hand():
    # var = mean(x^2) - mean(x)^2, so d var / dx = 2 (x - mean) / n.
    x = by_hand([1, 2, 6]).requires_grad_()
    F.batch_variance(x)[0].backward(one(3.0))
    assert x.grad.flatten().tolist() == pytest.approx([-4, -2, 6])


def test_batch_variance_of_nothing():
    variance, count = F.batch_variance(draw(0, 3, 4, 4))
    assert count.item() == 0
    assert variance.isnan().all()
    assert variance.shape == (3,)


@pytest.mark.parametrize("centred", [True, False])
def test_gradients_of_batch_variance_of_nothing(centred):
    x, dy = draw(0, 3, 4, 4), draw(3)
    variance, _ = F.batch_variance(x, centred=centred)
    (dx,) = torch.autograd.grad(variance, x, dy, create_graph=True)
    assert dx.shape == x.shape
    assert torch.autograd.grad(dx.sum(), dy)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("centred", [True, False])
def test_merged_moments_are_those_of_the_union(centred):
    parts = [draw(n, 2, h, 3, grad=False) + n for n, h in [(2, 4), (0, 4), (1, 1), (3, 2)]]
    moments = zip(*(statistics.local_moments(p, centred=centred) for p in parts), strict=True)
    count, mean, m2 = statistics.merge_moments(*(torch.stack(m) for m in moments))
    union = torch.cat([p.transpose(0, 1).flatten(1) for p in parts], 1)
    centre = union.mean(1) if centred else torch.zeros(2).double()
    assert count.item() == union.shape[1]
    torch.testing.assert_close(mean, centre)
    torch.testing.assert_close(m2, (union - centre[:, None]).square().sum(1))


def test_merged_moments_of_nothing_are_finite():
    nothing = [statistics.local_moments(draw(0, 2, 3, 3)) for _ in range(2)]
    merged = statistics.merge_moments(*(torch.stack(m) for m in zip(*nothing, strict=True)))
    assert all((m == 0).all() for m in merged)


@pytest.mark.parametrize("name", ["evonorm_s0", "evonorm_s1", "evonorm_s2"])
def test_impl(name):
    x, weight, bias, v = draw(2, 6, 3, 3), draw(6), draw(6), draw(6)
    auto = call(name, x, weight, bias, v)
    assert torch.equal(auto, call(name, x, weight, bias, v, impl="torch"))
    with pytest.raises(ValueError, match=r"impl='cuda13'.*'auto', 'torch'"):
        call(name, x, weight, bias, v, impl="cuda13")


@pytest.mark.parametrize("name", REFERENCES)
def test_only_wanted_gradients(name):
    """A frozen input or parameter neither gets a gradient nor changes the others'."""
    args = draw(2, 6, 3, 3), draw(6), draw(6), draw(6)
    weight, bias = args[1:3]
    full = torch.autograd.grad(call(name, *args).sum(), (weight, bias))
    frozen = [a.detach().requires_grad_(i == 1) for i, a in enumerate(args)]
    call(name, *frozen).sum().backward()
    torch.testing.assert_close(frozen[1].grad, full[0])
    assert [a.grad is None for a in frozen] == [True, False, True, True]


@pytest.mark.parametrize("name", REFERENCES)
def test_creating_a_graph_changes_no_gradient(name):
    args = draw(2, 6, 3, 3), draw(6), draw(6), draw(6)
    y = call(name, *args)
    dy = torch.randn_like(y)
    plain = torch.autograd.grad(y, args, dy, retain_graph=True, allow_unused=True)
    graph = torch.autograd.grad(y, args, dy, create_graph=True, allow_unused=True)
    for a, b in zip(plain, graph, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-12)
