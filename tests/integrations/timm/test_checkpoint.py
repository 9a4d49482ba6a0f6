"""``load_state_dict()``: all of a checkpoint or nothing."""

import copy

import pytest
import timm
import torch

from evonorm_plugins import convert
from evonorm_plugins.integrations.timm import CheckpointError, fuse, load_state_dict


def model(**options):
    return timm.create_model("test_efficientnet_evos", num_classes=5, **options)


@pytest.mark.parametrize("fused", [True, False])
def test_loads(fused):
    theirs, ours = model(), model()
    load_state_dict(fuse(ours).model if fused else ours, theirs.state_dict())
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


def half_converted():
    """The first norms are EvoNorm-S0, the others are batch normalizations yet."""
    converted = convert(
        timm.create_model("test_efficientnet", num_classes=5), "EvoNormS0", keep="blocks.[1-9]*"
    )
    return converted.model.state_dict()


def lacking(key):
    state = model().state_dict()
    del state[key]
    return state


WRONG = {
    "converted in part": (
        half_converted,
        r"^10 of 13 norms are of another layer in the checkpoint: "
        r"blocks\.1\.0\.bn1 \(EvoNormS0 with bias, v, weight\) has bias, num_batches_tracked, "
        r"running_mean, running_var, weight, .* and 7 more; nothing was loaded$",
    ),
    "a norm is gone": (
        lambda: lacking("bn1.v"),
        r"^1 of 13 norms .*: bn1 \(EvoNormS0 with bias, v, weight\) has bias, weight; nothing was",
    ),
    "a weight is gone": (
        lambda: lacking("classifier.weight"),
        r"^the checkpoint lacks classifier\.weight; nothing was loaded$",
    ),
    "more": (
        lambda: {**model().state_dict(), "head.weight": torch.zeros(2)},
        r"^the checkpoint has what the model does not: head\.weight; nothing was loaded$",
    ),
    "another number of classes": (
        lambda: timm.create_model("test_efficientnet_evos", num_classes=7).state_dict(),
        r"^the checkpoint has other shapes of classifier\.weight, classifier\.bias; nothing was",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_nothing_is_loaded(case):
    make, message = WRONG[case]
    ours = fuse(model()).model
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_state_dict(ours, make())
    torch.testing.assert_close(dict(ours.state_dict()), dict(before), rtol=0, atol=0)
