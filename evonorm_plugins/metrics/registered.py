"""torch-fidelity's feature extractors by name; weights come from files, nothing is downloaded.

CLIP (arXiv 2103.00020), DINOv2 (arXiv 2304.07193) and VGG16 (arXiv 1409.1556), with the resizing
and the networks of torch-fidelity. It gets DINOv2's alone by running downloaded code; here that is
:mod:`~evonorm_plugins.metrics.dinov2`.
"""

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from evonorm_plugins.errors import InputError, MissingDependencyError
from evonorm_plugins.metrics.data import Images
from evonorm_plugins.metrics.dinov2 import DinoV2
from evonorm_plugins.metrics.extractor import CustomExtractor, Extracted, by_shape
from evonorm_plugins.metrics.inception import read_state
from evonorm_plugins.metrics.weights import cache_folder, file_sha256, first_hub_folder

INCEPTION = "inception-v3-compat"  # torch-fidelity's name of what needs no name here
_DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/{0}/{0}_pretrain.pth"
_VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
# What tells CLIP's networks apart: width, patch and positions, or blocks of each stage. They are
# built as a file is, whatever the name.
_CLIP = {
    "clip-rn50": (3, 4, 6, 3),
    "clip-rn101": (3, 4, 23, 3),
    "clip-rn50x4": (4, 6, 10, 6),
    "clip-rn50x16": (6, 8, 18, 8),
    "clip-rn50x64": (3, 15, 36, 10),
    "clip-vit-b-32": (768, 32, 50),
    "clip-vit-b-16": (768, 16, 197),
    "clip-vit-l-14": (1024, 14, 257),
    "clip-vit-l-14-336px": (1024, 14, 577),
}


def known_extractors() -> list[str]:
    """Names of the extractors that the installed torch-fidelity has and this module can load."""
    try:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
    except ImportError:
        raise MissingDependencyError("torch-fidelity") from None
    families = INCEPTION, "vgg16", "clip-", "dinov2-"
    return sorted(name for name in FEATURE_EXTRACTORS_REGISTRY if name.startswith(families))


def find_extractor_weights(
    name: str,
    path: str | os.PathLike | None = None,
    *,
    notify: Callable[[str], object] = print,
) -> tuple[Path, str]:
    """Path and SHA-256 of the weights of an extractor.

    Looked for in this order: ``path``; the per-user cache; torch's hub folder; for CLIP the folder
    of OpenAI's package, ``~/.cache/clip``. A file in one of the last three whose hash is known to
    be another is passed over.

    Args:
        name: one of :func:`known_extractors`, but not Inception.
        path: a file, or None.
        notify: called with a text about files that were passed over.

    Raises:
        InputError: there is no such file; says which one, and where it would be found.
    """
    if path is not None:
        if not os.path.isfile(path):
            raise InputError(
                f"--feature-extractor-weights: there is no file {path}; a file is needed, nothing "
                "is downloaded"
            )
        return Path(path), file_sha256(path)
    url, sha256 = _source(name)
    # torch-fidelity keeps CLIP's under a name with the hash; others under the address's.
    names = [f"{name}-{sha256}.pt"] if name in _CLIP else []
    places = [f / n for f in (cache_folder(), first_hub_folder()) for n in (*names, Path(url).name)]
    places += [Path.home() / ".cache/clip" / Path(url).name] if name in _CLIP else []
    for place in places:
        if place.is_file():
            found = file_sha256(place)
            if found.startswith(sha256):
                return place, found
            notify(
                f"{place} is not the file of {name} (sha256 {found[:8]}..., not {sha256[:8]}...) "
                "and was passed over; is it cut off?"
            )
    raise InputError(
        f"the weights of {name} were not found, and nothing is downloaded: get {url} and give it "
        f"with --feature-extractor-weights FILE, or copy it to {cache_folder()} (looked for as "
        f"{', '.join(map(str, places))})"
    )


def _source(name: str) -> tuple[str, str]:
    """Address of a weights file, and what its SHA-256 begins with, as far as that is published."""
    if name == "vgg16":
        return _VGG16_URL, "397923af"
    if name in _CLIP:
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS

        return MODEL_URLS[name], MODEL_METADATA[name]["hash"]
    return _DINOV2_URL.format(_dinov2_name(name)), ""


def _dinov2_name(name: str) -> str:
    from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA

    return MODEL_METADATA[name]


def open_extractor(
    extractor: str,
    device: str | torch.device = "cpu",
    *,
    weights: str | os.PathLike | None = None,
    notify: Callable[[str], object] = print,
) -> "CustomExtractor | RegisteredExtractor":
    """The extractor that an option names: a file, or torch-fidelity's of that name.

    Args:
        extractor: a path, or one of :func:`known_extractors`, but not Inception.
        weights, notify: of a name, see :func:`find_extractor_weights`.

    Raises:
        InputError: there is no such file, name, or weights file, or one of another kind.
    """
    if os.path.isfile(extractor):
        if weights is not None:
            raise InputError(f"--feature-extractor-weights {weights}: {extractor} has its own")
        return CustomExtractor(extractor, device)
    check_extractor(extractor)
    return RegisteredExtractor(
        extractor, *find_extractor_weights(extractor, weights, notify=notify), device
    )


def check_extractor(extractor: str) -> None:
    """Raise InputError unless it is a file or one of :func:`known_extractors`."""
    if not os.path.isfile(extractor) and extractor not in (known := known_extractors()):
        raise InputError(
            f"feature extractor {extractor}: there is no file {extractor}, and torch-fidelity has "
            f"no extractor of that name; it has {', '.join(known)}"
        )


class RegisteredExtractor:
    """uint8 images (B, 3, H, W), or a list of (3, H, W), to features (B, D) float32; no logits.

    Args:
        name: one of :func:`known_extractors`, but not Inception.
        path: weights file, from :func:`find_extractor_weights`.
        sha256: of that file.
        device: where it runs.

    Raises:
        InputError: the file does not hold the weights of this extractor.
    """

    is_reference = has_logits = False

    def __init__(
        self,
        name: str,
        path: str | os.PathLike,
        sha256: str,
        device: str | torch.device = "cpu",
    ) -> None:
        self.name, self.sha256, self.device = name, sha256, torch.device(device)
        state = _read(Path(path))
        build = _clip if name in _CLIP else _vgg16 if name == "vgg16" else _dinov2
        try:
            self.net = build(name, str(path), state).eval().requires_grad_(False).to(self.device)
        except (RuntimeError, KeyError, AttributeError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} does not hold the weights of {name}: {reason[:200]}"
            ) from None

    @property
    def label(self) -> str:
        return f"{self.name}@{self.sha256[:8]}"

    def describe(self) -> dict[str, Any]:
        """What belongs to the protocol."""
        return {
            "extractor": self.name,
            "extractor_sha256": self.sha256,
            "extractor_is_reference": False,
            "backend": None,
            "resize": "bilinear as in TensorFlow 1.x (corners of pixels), as torch-fidelity",
            "precision": "float32",
            "fast": False,
        }

    @torch.no_grad()
    def __call__(self, images: Images) -> Extracted:
        return by_shape(images, lambda batch: (self.net(batch.to(self.device))[0], None))


def _read(path: Path) -> dict[str, torch.Tensor]:
    """A state dict, or that of a TorchScript module, as CLIP's files are."""
    if not _is_script(path):
        return read_state(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is announced to go
        try:
            return torch.jit.load(path, map_location="cpu").state_dict()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} cannot be read as weights: {reason}") from None


def _is_script(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _clip(name: str, path: str, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    from torch_fidelity import feature_extractor_clip as module

    first = state["visual.conv1.weight"]
    found: tuple[int, ...]
    if "visual.proj" in state:
        found = len(first), first.shape[-1], len(state["visual.positional_embedding"])
    else:
        layers = [{key.split(".")[2] for key in state if key.startswith(f"visual.layer{k}.")}
                  for k in (1, 2, 3, 4)]  # fmt: skip
        found = tuple(map(len, layers))
    if found != _CLIP[name]:
        raise RuntimeError(f"its visual network is {found}, not {_CLIP[name]}")
    script = SimpleNamespace(state_dict=lambda: dict(state))
    with mock.patch.object(module.torch.jit, "load", return_value=script):
        return module.FeatureExtractorCLIP(name, ["clip"], feature_extractor_weights_path=path)


def _dinov2(name: str, path: str, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    from torch_fidelity import feature_extractor_dinov2 as module

    net = DinoV2(_dinov2_name(name))
    net.load_state_dict(state)
    # Its constructor would download the authors' code and run it.
    with mock.patch.object(module.torch.hub, "load", return_value=net):
        return module.FeatureExtractorDinoV2(name, ["dinov2"])


def _vgg16(name: str, path: str, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    from torch_fidelity import feature_extractor_vgg16 as module

    # Its constructor would read the file again, with pickle's full powers.
    with mock.patch.object(module.torch, "load", return_value=state):
        return module.FeatureExtractorVGG16(name, ["fc2_relu"], feature_extractor_weights_path=path)
