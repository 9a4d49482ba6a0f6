"""Number formats that a training computes in."""

import torch

from evonorm_plugins.errors import ConfigError

# None: as the weights are, float32.
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision, device):
    """Raise :class:`ConfigError` where a device does not train in this precision.

    Args:
        device: a ``torch.device``, or the name that a config gives; "auto" is known later.
    """
    if precision == "fp16" and str(device) == "cpu":
        raise ConfigError("precision=fp16 needs a GPU; bf16 and fp32 run on a CPU")


def autocast(precision, device):
    """The context in which operations on ``device`` are done in ``precision``, a name."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
