"""Weights of a run: fetched, read without running what the file holds, and written whole.

Detectron2 unpickles ``.pkl`` files, and so runs whatever their authors wrote into them. It writes
over the checkpoint that is there, and so leaves none when it is stopped meanwhile.
"""

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from evonorm_plugins.data.pickles import load_plain
from evonorm_plugins.errors import CheckpointError, DataError, reason
from evonorm_plugins.files import replacing
from evonorm_plugins.integrations.detectron2.checkpoint import (
    check_norms,
    dropping_norms,
    has_norm_acts,
    recorded_norms,
)


class _WholeFiles:
    """Detectron2's files, of which those that are written here appear when all is written."""

    def __getattr__(self, name: str) -> Any:
        return getattr(PathManager, name)

    @contextlib.contextmanager
    def open(self, path: str, mode: str = "r", **options: Any) -> Iterator[IO]:
        if "w" not in mode or "://" in path:
            with PathManager.open(path, mode, **options) as file:
                yield file
        else:
            with replacing(path) as partial, open(partial, mode, **options) as file:
                yield file


class SafeCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` for files of others, whose own files are whole or not there.

    ``.pkl`` files may hold arrays, numbers, texts and containers, as those of the model zoo do, and
    other files what ``torch.load(weights_only=True)`` reads. Checkpoints and ``last_checkpoint``
    take the place of what was there once they are written. After an error it can load again.

    Args:
        trust: read them with Python's pickle, which runs the code that they hold.
        drop_norms: whether :meth:`resume_or_load` loads weights that were trained with another norm
            :func:`without their norms <evonorm_plugins.integrations.detectron2.dropping_norms>`;
            where it resumes it does not.

    Raises:
        CheckpointError: by ``load``: the file holds anything else, or cannot be read, or was
            trained with another norm.
    """

    _parsed_url_during_load: Any  # of the parent, which never forgets a load that failed

    def __init__(
        self,
        model: torch.nn.Module,
        save_dir: str = "",
        *,
        trust: bool = False,
        drop_norms: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, save_dir, **options)
        self.path_manager = _WholeFiles()
        self.trust, self.drop_norms = trust, drop_norms

    def load(self, path: str, *args: Any, **options: Any) -> dict[str, Any]:
        try:
            return super().load(path, *args, **options)
        finally:
            self._parsed_url_during_load = None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        drops = self.drop_norms and not (resume and self.has_checkpoint())
        with dropping_norms() if drops else contextlib.nullcontext():
            return super().resume_or_load(path, resume=resume)

    def _load_file(self, filename: str) -> dict[str, Any]:
        as_arrays = filename.endswith(".pkl") and not self.trust
        try:
            loaded = _of_model_zoo(filename) if as_arrays else super()._load_file(filename)
        except (AttributeError, TypeError):  # of what is no dictionary
            loaded = {}
        except CheckpointError:
            raise
        except ValueError as error:  # of a query in its address
            raise CheckpointError(f"cannot read checkpoint {filename}: {reason(error)}") from error
        except _UNREADABLE as error:
            raise CheckpointError(
                f"cannot read checkpoint {filename} ({os.path.getsize(filename)} bytes): it is cut "
                f"off or no checkpoint ({reason(error)[:200]})"
            ) from error
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
            if self.trust or not _may_be_torchs(f):
                raise
            named = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported class ([\w.]+)", str(error))
            if named is None:
                raise _refused(f"torch's weights_only refuses {f}: {_in_short(error)}") from None
            raise _refused(f"{f} cannot be read: it names {named[1] or named[2]}") from None

    def _load_model(self, checkpoint: dict) -> Any:
        # Those of models with norm-activation layers are checked wherever they are loaded.
        if not has_norm_acts(self.model) and recorded_norms(checkpoint):
            check_norms(self.model, checkpoint)
        return super()._load_model(checkpoint)


# What torch and pickle raise for files that are cut off, or are something else.
_UNREADABLE = (
    *(RuntimeError, EOFError, KeyError, IndexError, pickle.UnpicklingError),
    zipfile.BadZipFile,
)


def _may_be_torchs(filename: str) -> bool:
    """Whether a file begins as torch's do: a zip archive or, before, a pickle."""
    with open(filename, "rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _in_short(error: Exception) -> str:
    """What torch says of a file, without what follows: advice to run what it holds."""
    text = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


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


def check_last_checkpoint(folder: str | os.PathLike, *, trust: bool = False) -> None:
    """Find out whether a run can go on from what ``last_checkpoint`` names, if it is there.

    Raises:
        CheckpointError: it is empty, or what it names is not there or cannot be read. The message
            names the newest checkpoint that can.
    """
    record = Path(folder, "last_checkpoint")
    if not record.exists():
        return
    name = record.read_text(encoding="utf-8", errors="replace").strip()
    try:
        if not name:
            raise CheckpointError(f"{record} is empty")
        try:
            check_weights(str(Path(folder, name)), trust=trust)
        except CheckpointError as error:
            raise CheckpointError(f"{record} names {name}, but {error}") from None
    except CheckpointError as error:
        whole = _newest_whole_checkpoint(folder, trust=trust)
        offer = (
            f"the newest checkpoint that is whole is {whole}; to go on from it, write its name "
            f"into the file: echo {whole} > {record}"
            if whole
            else f"no checkpoint in {folder} is whole: begin anew in another folder"
        )
        raise CheckpointError(f"{error}; {offer}") from None


def _newest_whole_checkpoint(folder: str | os.PathLike, *, trust: bool) -> str | None:
    files = [p for p in Path(folder).glob("*.pth") if not p.name.startswith(".")]
    for path in sorted(files, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True):
        with contextlib.suppress(CheckpointError):
            check_weights(str(path), trust=trust)
            return path.name
    return None
