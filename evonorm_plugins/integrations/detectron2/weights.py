"""Weights of a run: fetched, and read without running what the file holds.

Detectron2 unpickles ``.pkl`` files, and so runs whatever their authors wrote into them.
"""

import pickle
import re
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from evonorm_plugins.data.pickles import load_plain
from evonorm_plugins.errors import CheckpointError, DataError, reason


class SafeCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` for files of others.

    ``.pkl`` files may hold arrays, numbers, texts and containers, as those of the model zoo do, and
    other files what ``torch.load(weights_only=True)`` reads.

    Args:
        trust: read them with Python's pickle, which runs the code that they hold.

    Raises:
        CheckpointError: by ``load``: the file holds anything else, or cannot be read.
    """

    def __init__(
        self, model: torch.nn.Module, save_dir: str = "", *, trust: bool = False, **options: Any
    ) -> None:
        super().__init__(model, save_dir, **options)
        self.trust = trust

    def _load_file(self, filename: str) -> dict[str, Any]:
        as_arrays = filename.endswith(".pkl") and not self.trust
        try:
            loaded = _of_model_zoo(filename) if as_arrays else super()._load_file(filename)
        except (AttributeError, TypeError):  # of what is no dictionary
            loaded = {}
        weights = loaded.get("model")
        if not isinstance(weights, dict):
            raise CheckpointError(f"{filename} holds no weights by name")
        for name, value in weights.items():
            if not isinstance(value, np.ndarray | torch.Tensor):
                raise CheckpointError(f"{filename}: {name} is a {type(value).__name__}, no array")
        return loaded

    def _torch_load(self, f: str) -> Any:
        try:
            return torch.load(f, map_location="cpu", weights_only=not self.trust)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported class ([\w.]+)", str(error))
            if named is None:
                raise
            raise _refused(f"{f} cannot be read: it names {named[1] or named[2]}") from None


def _of_model_zoo(filename: str) -> dict[str, Any]:
    """A ``.pkl`` as Detectron2 reads it: in its own format, or in Caffe2's."""
    try:
        data = load_plain(filename)
    except DataError as error:
        raise _refused(error) from None
    if "model" in data and "__author__" in data:
        return data
    data = data.get("blobs", data)
    data = {k: v for k, v in data.items() if not k.endswith("_momentum")}
    return {"model": data, "__author__": "Caffe2", "matching_heuristics": True}


def _refused(why: object) -> CheckpointError:
    return CheckpointError(
        f"{why}. Arrays, numbers, texts and containers of them are read; anything else could run "
        "the code of whoever wrote it: if you trust the file, give --trust-weights"
    )


def local_file(weights: str) -> str:
    """The file of a path or URL, downloaded to Detectron2's cache where it is not there yet.

    Args:
        weights: as ``MODEL.WEIGHTS`` takes them: ``detectron2://...`` and a query are allowed.

    Raises:
        CheckpointError: there is none, or it cannot be fetched.
    """
    path = urlparse(weights)._replace(query="").geturl()
    try:
        local = PathManager.get_local_path(path)
        if PathManager.isfile(local):
            return local
    except Exception as error:  # of whatever protocol
        raise CheckpointError(f"cannot fetch the checkpoint {weights}: {reason(error)}") from None
    raise CheckpointError(f"there is no checkpoint {weights}")


def check_weights(weights: str, *, trust: bool = False) -> None:
    """Read a checkpoint, to learn before the work that it can be read.

    Raises:
        CheckpointError: it cannot.
    """
    checkpointer = SafeCheckpointer(torch.nn.Module(), trust=trust)
    checkpointer._parsed_url_during_load = urlparse(weights)
    checkpointer._load_file(local_file(weights))
