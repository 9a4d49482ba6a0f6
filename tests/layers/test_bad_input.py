"""What makes no sense is refused with a message that names it."""

import re

import pytest
import torch

from evonorm_plugins import get_norm_act, list_norm_acts
from evonorm_plugins.errors import ConfigError

WITH_GROUPS = [n for n in list_norm_acts() if n.startswith(("EvoNormS", "GN-", "Candidate-S"))]
WITH_MOMENTUM = ["EvoNormB0", "SyncEvoNormB1", "RS + rej", "BN-ReLU", "BN-Swish", "Candidate-B2"]
INFINITE, NAN = float("inf"), float("nan")


def test_bad_input(every, make, device):
    layer = make(every)
    kind = type(layer).__name__
    for shape in [(8,), ()]:
        with pytest.raises(ValueError, match=rf"{kind} takes \(N, C\), \(N, C, L\)") as error:
            layer(torch.zeros(shape, device=device))
        assert str(shape) in str(error.value)
    for shape, hint in {
        (2, 5, 8, 9): "",
        (2, 5): "",
        (8, 5, 7): "; without a batch it needs x.unsqueeze(0)",
        (2, 5, 8): "; channels come second: x.movedim(-1, 1)",
        (2, 5, 6, 7, 8): "; channels come second: x.movedim(-1, 1)",
    }.items():
        message = f"{kind}(8) got 5 channels in {shape}{hint}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            layer(torch.zeros(shape, device=device))
    for dtype in (torch.int64, torch.uint8, torch.complex64):
        with pytest.raises(TypeError, match=f"{kind} takes a floating point tensor, got {dtype}"):
            layer(torch.zeros(2, 8, 5, 7, device=device, dtype=dtype))


def refused(name, option, values, *, channels=64):
    """Each value is refused by the layer, in words that start with the option and the value."""
    for value in values:
        with pytest.raises(ConfigError, match=f"^{re.escape(f'{option}={value!r}')} "):
            get_norm_act(name, channels, **{option: value})


def test_bad_number_of_channels(every):
    for value in (0, -1, 2.5, True, "64", None):
        with pytest.raises(ConfigError, match=f"num_features={value!r} must be an integer"):
            get_norm_act(every, value)


def test_bad_options_of_every_layer(every):
    refused(every, "eps", [0, -1e-5, NAN, INFINITE, "1e-5", None, True])
    refused(every, "apply_act", ["no", 0, 1, None, torch.tensor(True)])
    refused(every, "device", ["banana", 1.5, "cuda:x"])
    refused(every, "dtype", ["float32", torch.int64, torch.complex64, float])


@pytest.mark.parametrize("name", WITH_GROUPS)
def test_bad_groups(name):
    refused(name, "groups", [0, -1, 2.5, True, "32"])


@pytest.mark.parametrize("name", [n for n in WITH_GROUPS if n.startswith("GN-")])
def test_groups_of_group_normalization_are_given(name):
    refused(name, "groups", [None])  # where a group_size can take their place, None is no groups


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormS1", "EvoNormS2"])
def test_bad_group_size(name):
    refused(name, "group_size", [0, -1, 2.5, True, "8", 24, 128])
    with pytest.raises(ConfigError, match=r"^group_size=24 does not divide 64 channels$"):
        get_norm_act(name, 64, group_size=24)
    with pytest.raises(ConfigError, match=r"^groups=32 and group_size=8: give one of them$"):
        get_norm_act(name, 64, groups=32, group_size=8)


@pytest.mark.parametrize("name", WITH_MOMENTUM)
def test_bad_momentum(name):
    refused(name, "momentum", [2, -0.1, NAN, INFINITE, "0.1", None, True])


@pytest.mark.parametrize("name", ["EvoNormB0", "SyncEvoNormB1"])
def test_bad_unbiased_running_var(name):
    refused(name, "unbiased_running_var", [0, 1, "yes", None])


def test_bad_implementation():
    refused("EvoNormS0", "impl", ["gpu", None, "CPU"])
