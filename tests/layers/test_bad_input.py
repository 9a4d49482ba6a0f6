"""What makes no sense is refused with a message that names it."""

import pytest
import torch

from evonorm_plugins import get_norm_act, list_norm_acts


def test_bad_input(every, make, device):
    layer = make(every)
    kind = type(layer).__name__
    for shape in [(8, 5, 7), (2, 8), (2, 8, 5, 7, 1), ()]:
        with pytest.raises(ValueError, match=rf"{kind} takes \(N, C, H, W\)") as error:
            layer(torch.zeros(shape, device=device))
        assert str(shape) in str(error.value)
    with pytest.raises(ValueError, match=rf"{kind}\(8\) got 5 channels in \(2, 5, 8, 8\)"):
        layer(torch.zeros(2, 5, 8, 8, device=device))
    for dtype in (torch.int64, torch.uint8, torch.complex64):
        with pytest.raises(TypeError, match=f"{kind} takes a floating point tensor, got {dtype}"):
            layer(torch.zeros(2, 8, 5, 7, device=device, dtype=dtype))


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "64", None])
def test_bad_number_of_channels(every, value):
    with pytest.raises(ValueError, match=f"num_features={value!r} must be an integer"):
        get_norm_act(every, value)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "32", None])
@pytest.mark.parametrize("name", [n for n in list_norm_acts() if n.startswith(("EvoNormS", "GN-"))])
def test_bad_groups(name, value):
    with pytest.raises(ValueError, match=f"groups={value!r} must be an integer"):
        get_norm_act(name, 64, groups=value)


@pytest.mark.parametrize("value", [0, -1e-5, float("nan"), "1e-5", None, True])
def test_bad_eps(every, value):
    with pytest.raises(ValueError, match=f"eps={value!r} must be"):
        get_norm_act(every, 64, eps=value)


@pytest.mark.parametrize("value", [2, -0.1, float("nan"), "0.1", None, True])
@pytest.mark.parametrize("name", ["EvoNormB0", "SyncEvoNormB1", "RS + rej", "BN-ReLU", "BN-Swish"])
def test_bad_momentum(name, value):
    with pytest.raises(ValueError, match=f"momentum={value!r} must be"):
        get_norm_act(name, 64, momentum=value)
