"""Find the Inception of 2015 that FID and IS are defined by, or say how to get it.

The file holds the TensorFlow graph of 2015-12-05 converted for PyTorch; pytorch-fid and
torch-fidelity publish the same bytes under two names.
"""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from evonorm_plugins.errors import InputError
from evonorm_plugins.files import replacing

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE_BYTES = 95_628_359
VARIABLE = "EVONORM_INCEPTION_WEIGHTS"
URLS = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
)
_TIMEOUT_S = 30


def cache_folder() -> Path:
    """The per-user folder that downloads go to."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "evonorm", "weights")


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return _digest(file)


def _digest(file: BinaryIO) -> str:
    state = hashlib.sha256()
    while block := file.read(1 << 20):
        state.update(block)
    return state.hexdigest()


def find_inception_weights(
    path: str | os.PathLike | None = None,
    *,
    download: bool = True,
    notify: Callable[[str], object] = print,
) -> tuple[Path, str]:
    """Path and SHA-256 of the weights file.

    Looked for in this order: ``path``; the variable EVONORM_INCEPTION_WEIGHTS; the per-user cache;
    torch's hub folder, where the two tools keep it; the download, which is checked before it gets
    its name. Only a file that was named by hand may differ from the one the tools use, and scores
    are then labelled with its hash.

    Args:
        path: a file, or None.
        download: whether to download what was not found; trainings, which have no option for the
            file, do not.
        notify: called with a text about files that were passed over.

    Raises:
        InputError: there is no such file, or it could be neither found nor downloaded.
    """
    for given, origin in ((path, "--inception-weights"), (os.environ.get(VARIABLE), VARIABLE)):
        if given:
            if not os.path.isfile(given):
                raise InputError(f"{origin}: there is no file {given}")
            return Path(given), file_sha256(given)
    target = cache_folder() / Path(URLS[0]).name
    for candidate in (target, *_hub_files()):
        if candidate.is_file():
            found = file_sha256(candidate)
            if found == SHA256:
                return candidate, found
            notify(
                f"{candidate} is not the file of the reference tools (sha256 {found[:8]}..., not "
                f"{SHA256[:8]}...) and was passed over; is it cut off?"
            )
    if not download:
        where = f"it is in none of {target}, {first_hub_folder()}"
        raise InputError(_how_to_get(where, f"{VARIABLE}=FILE"))
    _download(target, notify)
    return target, SHA256


def first_hub_folder() -> Path:
    import torch

    return Path(torch.hub.get_dir(), "checkpoints")


def _hub_files() -> list[Path]:
    return [first_hub_folder() / Path(url).name for url in URLS]


def _download(target: Path, notify: Callable[[str], object]) -> None:
    reasons = []
    for url in URLS:
        notify(f"downloading {url} to {target} ({SIZE_BYTES / 1e6:.0f} MB)")
        try:
            _fetch(url, target)
            return
        except (OSError, urllib.error.URLError, ValueError) as error:
            reasons.append(f"{url}: {error}")
    raise InputError(
        _how_to_get("; ".join(reasons), f"--inception-weights FILE or {VARIABLE}=FILE")
    )


def _fetch(url: str, target: Path) -> None:
    """Download to a temporary name; the file gets its own only if its hash is right."""
    state = hashlib.sha256()
    with replacing(target) as partial:
        with (
            open(partial, "wb") as file,
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response,
        ):
            while block := response.read(1 << 20):
                state.update(block)
                file.write(block)
        if state.hexdigest() != SHA256:
            raise ValueError(f"what came has sha256 {state.hexdigest()}, not {SHA256}")


def _how_to_get(reason: str, options: str) -> str:
    return (
        f"the Inception weights were not found and not downloaded ({reason}). On a machine with "
        f"internet, get\n  {URLS[0]}\nor\n  {URLS[1]}\n(the same {SIZE_BYTES} bytes, sha256 "
        f"{SHA256}), and give the file with {options}, or copy it to {cache_folder()}"
    )
