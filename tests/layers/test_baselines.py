"""The paper's other rows against torch's modules and a few lines of torch."""

import copy

import pytest
import torch
from torch import nn

from evonorm_plugins import functional as F
from evonorm_plugins import get_norm_act, kernels

TORCH_ROWS = [
    *("BN-ReLU", "BN-PReLU", "BN-Swish-1", "BN-Swish"),
    *("GN-ReLU", "GN-Swish-1", "GN-Swish", "LN-ReLU"),
]


def norm_of(name, channels):
    """torch's own norm for the first part of a name."""
    return {
        "BN": lambda: nn.BatchNorm2d(channels),
        "GN": lambda: nn.GroupNorm(4, channels),
        "LN": lambda: nn.GroupNorm(1, channels),
    }[name[:2]]()


def activate(name, z, v):
    v = None if v is None else v[:, None, None]
    return {
        "ReLU": lambda: z.clamp(min=0),
        "PReLU": lambda: torch.maximum(z, v),
        "Swish-1": lambda: z * torch.sigmoid(z),
        "Swish": lambda: z * torch.sigmoid(v * z),
    }[name[3:]]()


@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("name", TORCH_ROWS)
def test_norm_and_activation(name, apply_act, make, draw, device):
    layer = make(name, apply_act=apply_act)
    norm = norm_of(name, 8).to(device)
    norm.load_state_dict(layer.norm.state_dict())
    assert type(layer.norm) is type(norm)
    for training in (True, True, False):
        layer.train(training)
        norm.train(training)
        x, dy = draw(3, 8, 5, 7, scale=2, shift=1), draw(3, 8, 5, 7)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        v = None if layer.v is None else layer.v.detach().clone().requires_grad_()
        y = layer(a)
        z = norm(b)
        expected = activate(name, z, v) if apply_act else z
        torch.testing.assert_close(y, expected)
        leaves = [a, layer.norm.weight, layer.norm.bias, *([] if v is None else [layer.v])]
        others = [b, norm.weight, norm.bias, *([] if v is None else [v])]
        torch.testing.assert_close(
            torch.autograd.grad(y, leaves, dy),
            torch.autograd.grad(expected, others, dy),
            rtol=1e-4,
            atol=1e-5,
        )
    _assert_same_averages(layer.norm, norm)


def _assert_same_averages(norm, expected):
    for key, tensor in expected.state_dict().items():
        # Of sums in another order where a kernel of ours computes.
        torch.testing.assert_close(norm.state_dict()[key], tensor, rtol=2e-6, atol=1e-7, msg=key)


def _frozen(norm):
    norm.eval()


def _of_all_batches(norm):
    norm.momentum = None


def _without_averages(norm):
    norm.track_running_stats = False
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def _with_fixed_averages(norm):
    norm.track_running_stats = False


def _uncounted(norm):
    norm.num_batches_tracked = None


def _uncounted_of_all_batches(norm):
    norm.momentum = norm.num_batches_tracked = None


def _of_the_last_batch(norm):
    norm.momentum = 1.0


def _in_half_precision(norm):
    norm.bfloat16()


@pytest.mark.parametrize(
    "change",
    [
        *(_frozen, _of_all_batches, _without_averages, _with_fixed_averages, _uncounted),
        *(_uncounted_of_all_batches, _of_the_last_batch, _in_half_precision),
    ],
)
def test_batch_norm_in_every_state(change, make, draw):
    """What can be done to torch's module is done to the norm of a layer, and means the same."""
    layer = make("BN-ReLU")
    change(layer.norm)
    norm = copy.deepcopy(layer.norm)
    is_half = change is _in_half_precision
    for _ in range(3):
        x, dy = draw(3, 8, 5, 7, scale=2, shift=1), draw(3, 8, 5, 7)
        if is_half:
            x, dy = x.bfloat16(), dy.bfloat16()
        inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours, theirs = layer(inputs[0]), norm(inputs[1]).relu()
        ours.backward(dy)
        theirs.backward(dy)
        close = {"rtol": 2e-2, "atol": 2e-2} if is_half else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close((ours, inputs[0].grad), (theirs, inputs[1].grad), **close)
        for key, tensor in norm.state_dict().items():
            torch.testing.assert_close(layer.norm.state_dict()[key], tensor, **close)
    training = layer.training
    layer.eval()
    norm.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), norm(x).relu(), **close)
    assert training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_batch_norm_of_what_is_not_finite(value, make, draw):
    """Moving averages are lost where torch's are."""
    layer = make("BN-ReLU")
    norm = copy.deepcopy(layer.norm)
    x = draw(3, 8, 5, 7)
    x[1, 2, 3, 4] = value
    assert torch.equal(layer(x).isfinite(), norm(x).relu().isfinite())
    for key, tensor in norm.state_dict().items():
        assert torch.equal(layer.norm.state_dict()[key].isfinite(), tensor.isfinite()), key


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (1, 8)], ids=str)
def test_batch_norm_of_one_number_a_channel_is_refused(shape, make, draw):
    layer, x = make("BN-ReLU"), draw(*shape)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer(x)
    before["norm.num_batches_tracked"] += 1  # as torch leaves it
    assert all(torch.equal(t, layer.state_dict()[k]) for k, t in before.items())
    assert layer.eval()(x).shape == shape


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [n for n in TORCH_ROWS if n.startswith("BN")])
def test_second_derivatives_of_batch_norm(name, training, make, draw):
    layer = make(name).train(training)
    norm, v = copy.deepcopy(layer.norm), layer.v
    x, dy = draw(3, 8, 4, 5), draw(3, 8, 4, 5)

    def second(function, norm):
        a = x.clone().requires_grad_()
        leaves = [a, norm.weight, norm.bias, *([] if v is None else [v])]
        found = torch.autograd.grad(function(a), leaves, dy, create_graph=True)
        penalty = sum(g.square().sum() for g in found)
        return torch.autograd.grad(penalty, leaves, allow_unused=True, materialize_grads=True)

    expected = second(lambda a: activate(name, norm(a), v), norm)
    actual = second(layer, layer.norm)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(kernels.cpu.missing() is not None, reason="no CPU kernels")
def test_batch_norm_has_kernels_for_cpus_alone():
    x = torch.randn(2, 8, 3, 3)
    assert kernels.select_batch_norm("auto", x) == kernels.select_batch_norm("cpu", x) == "cpu"
    for other in (x.double(), x.to("meta")):
        assert kernels.select_batch_norm("auto", other) == "torch"
    with pytest.raises(RuntimeError, match="impl='triton' cannot run: batch normalization"):
        get_norm_act("BN-ReLU", 8, impl="triton")(x)


@pytest.mark.parametrize("name", ["GN-ReLU", "GN-Swish", "LN-ReLU"])
def test_checkpoints_of_torchs_norms_load(name, draw, device):
    """As they were written when norm and activation were two steps."""
    norm = norm_of(name, 8).to(device)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(draw(8))
    old = {f"norm.{key}": tensor for key, tensor in norm.state_dict().items()}
    if name == "GN-Swish":
        old["v"] = draw(8)
    options = {"groups": 4} if name.startswith("GN") else {}
    layer = get_norm_act(name, 8, **options).to(device)
    layer.load_state_dict(old, strict=True)
    x = draw(3, 8, 5, 7)
    torch.testing.assert_close(layer(x), activate(name, norm(x), old.get("v")))
    # What is trained in the order of parameters, as an optimizer's state is.
    assert [n for n, _ in layer.named_parameters()] == sorted(old, key=lambda key: key != "v")


@pytest.mark.parametrize("kind", ["S0a", "S1a", "S2a"])
def test_statistics_without_activation_as_in_timm(kind, draw, device):
    """Their layers normalize all the same where none is applied; the mean stays where it is."""
    timm = pytest.importorskip("timm.layers.evo_norm")
    theirs = getattr(timm, f"EvoNorm2d{kind}")(8, groups=4, apply_act=False).to(device)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(draw(8))
    x, dy = draw(3, 8, 5, 7, scale=2, shift=1).requires_grad_(), draw(3, 8, 5, 7)
    statistics = "rms" if kind == "S2a" else "std"
    ours = F.group_norm_act(
        x, theirs.weight, theirs.bias, act="none", statistics=statistics, groups=4, eps=theirs.eps
    )
    expected = theirs(x)
    torch.testing.assert_close(ours, expected)
    leaves = [x, theirs.weight, theirs.bias]
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, dy),
        torch.autograd.grad(expected, leaves, dy),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_group_for_each_channel_is_instance_normalization(draw, device):
    x, one = draw(3, 8, 5, 7, scale=2, shift=1), torch.ones(8, device=device)
    y = F.group_norm_act(x, one, one * 0, act="silu", groups=8)
    expected = nn.functional.silu(nn.functional.instance_norm(x))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("name", TORCH_ROWS)
def test_options_reach_torchs_norm(name):
    options = {"eps": 0.01, "momentum": 0.3} if name.startswith("BN") else {"eps": 0.01}
    norm = get_norm_act(name, 8, **options).norm
    assert {key: getattr(norm, key) for key in options} == options


@pytest.mark.parametrize(
    ("name", "start"), [("BN-PReLU", 0.0), ("BN-Swish", 1.0), ("GN-Swish", 1.0), ("FRN", 0.0)]
)
def test_learnable_v_starts_at(name, start):
    assert get_norm_act(name, 3).v.tolist() == [start] * 3


@pytest.mark.parametrize("name", ["BN-Swish-1", "GN-Swish-1"])
def test_swish_with_v_one_is_swish_1(name, make, draw):
    fixed = make(name)
    learnable = make(name.removesuffix("-1"))
    learnable.norm.load_state_dict(fixed.norm.state_dict())
    learnable.v.data.fill_(1)
    x = draw(3, 8, 5, 7)
    torch.testing.assert_close(learnable(x), fixed(x))


def test_layer_norm_is_over_channels_and_space(draw, device):
    x = draw(3, 6, 4, 5, scale=3, shift=2)
    expected = nn.functional.layer_norm(x, (6, 4, 5)).clamp(min=0)
    torch.testing.assert_close(get_norm_act("LN-ReLU", 6).to(device)(x), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("apply_act", [True, False])
def test_filter_response_normalization(apply_act, training, make, draw):
    layer = make("FRN", apply_act=apply_act).train(training)
    x = draw(3, 8, 5, 7)
    y = x / (x.square().mean((2, 3), keepdim=True) + 1e-6).sqrt()
    y = y * layer.weight[:, None, None] + layer.bias[:, None, None]
    expected = torch.maximum(y, layer.v[:, None, None]) if apply_act else y
    torch.testing.assert_close(layer(x), expected)
    assert layer.eps == 1e-6


@pytest.mark.parametrize("apply_act", [True, False])
def test_pixel_norm(apply_act, make, draw):
    layer = make("PixelNorm-ReLU", apply_act=apply_act)
    x = draw(3, 8, 5, 7)
    # A pixel's vector has length sqrt(C): that is, its normalized squares sum to C.
    y = nn.functional.normalize(x, dim=1) * 8**0.5
    y = y * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), y.clamp(min=0) if apply_act else y)
    assert layer.eps == 1e-8


def test_random(make, draw):
    layer = make("Random")
    x = draw(3, 8, 5, 7)
    z = (torch.sigmoid(x).var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = (torch.sign(z) * z.abs().sqrt()).expand_as(x)
    expected = expected * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_random_output_shares_no_memory_within_itself(make, draw):
    """It is constant over space, but writing one element must not change another."""
    y = make("Random")(draw(2, 8, 3, 4)).detach()
    before = y.clone()
    y[0, 0, 0, 0] += 1
    assert (y != before).sum().item() == 1


def test_random_with_rejection(make, draw):
    layer = make("Random + rej")
    x = draw(3, 8, 5, 7)
    expected = torch.where(x > 0, x, torch.tanh(x)).tanh()  # tanh(x) is the larger below 0
    expected = expected * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_random_search_with_rejection(make, draw):
    layer = make("RS + rej")
    x = draw(3, 8, 5, 7)
    mean_square = x.square().mean((0, 2, 3))
    for training in (True, False):
        moving = layer.running_var.clone()
        layer.train(training)
        rms = ((mean_square if training else moving) + 1e-5).sqrt()[:, None, None]
        expected = x.clamp(min=0) / rms * layer.weight[:, None, None] + layer.bias[:, None, None]
        torch.testing.assert_close(layer(x), expected)
        after = 0.9 * moving + 0.1 * mean_square if training else moving
        torch.testing.assert_close(layer.running_var, after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["BN-PReLU", "BN-Swish", "GN-Swish"])
def test_gradient_of_v_is_summed_in_float32(name, dtype, make, draw):
    """65,536 elements a channel: a sum in the dtype of the input would overflow or stop growing."""
    layer = make(name)
    x = draw(4, 8, 128, 128, dtype=dtype, scale=2)
    layer(x).backward(torch.full_like(x, 2))
    reference = make(name).double()
    reference.load_state_dict({k: t.double() for k, t in layer.state_dict().items()})
    reference(x.double()).backward(torch.full_like(x, 2).double())
    torch.testing.assert_close(layer.v.grad.double(), reference.v.grad, rtol=0.02, atol=10)
    assert layer.v.grad.abs().max() > 1e4


@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("name", [n for n in TORCH_ROWS if n.startswith("BN")])
def test_dtype_where_the_norm_changes_it(name, apply_act, make, draw):
    """As autocast does to some of torch's norms, which give float32 there; ours are not called."""
    layer = make(name, apply_act=apply_act)
    layer.norm.register_forward_hook(lambda module, args, z: z.float())
    assert layer(draw(2, 8, 3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
