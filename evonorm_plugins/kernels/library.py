"""The C library in ``csrc``, and what it is told of torch."""

import importlib
import importlib.util
from types import ModuleType

import torch

_NAME = "evonorm_plugins.kernels._evonorm"
# Of csrc/module.c: raised with every change of what an entry takes.
_INTERFACE = 5
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of csrc/evonorm.h
INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512", "AVX-512 BF16")
# Of the DLPack protocol, a table of functions. Before torch 2.10 there is none.
DLPACK = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)


class Unfit(ValueError):
    """A tensor is not what the kernels take, or one is missing. Nothing was computed."""


def load() -> ModuleType | str:
    """The library, or in its place why there is none."""
    if importlib.util.find_spec(_NAME) is None:
        return "the C extension was not built when the package was installed"
    try:
        found = importlib.import_module(_NAME)
    except ImportError as error:
        return f"_evonorm cannot be loaded ({error}); install the package again"
    if getattr(found, "INTERFACE", None) != _INTERFACE:
        return "_evonorm is of another version of the package; install it again"
    connect(found)
    found.choose(len(INSTRUCTION_SETS) - 1)
    return found


def connect(found: ModuleType) -> None:
    """Tell the library what it needs to know of torch."""
    # Without the protocol it reads attributes of tensors instead.
    found.prepare(Unfit, *DTYPES, torch.Tensor, DLPACK)


library = load()
