"""A feature extractor of the user's: TorchScript or ``torch.export``, uint8 images to features."""

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from evonorm_plugins.errors import InputError
from evonorm_plugins.metrics.data import Images
from evonorm_plugins.metrics.weights import file_sha256

Extracted = tuple[torch.Tensor, torch.Tensor | None]  # features (B, D), logits (B, C) if any


class Extractor(Protocol):
    """What makes features of images, and says which it is."""

    has_logits: bool | None  # None where that is not known before the first batch

    @property
    def label(self) -> str: ...

    def describe(self) -> dict[str, Any]: ...

    def __call__(self, images: Images, /) -> Extracted: ...


class CustomExtractor:
    """uint8 images to features (B, D) and, if the module gives a second output, logits (B, C).

    The module gets (B, 3, H, W) and returns features, or a tuple of features and logits. Images of
    other sizes come in other batches: it does its own resizing.

    Args:
        path: of ``torch.jit.save`` or ``torch.export.save``; the latter with a dynamic batch.
        device: where it runs.

    Raises:
        InputError: it cannot be loaded, or what it returns are no features.
    """

    precision = "float32"
    is_reference = False

    def __init__(self, path: str | os.PathLike, device: str | torch.device = "cpu") -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"there is no file {path}")
        self.sha256 = file_sha256(path)
        self.device = torch.device(device)
        self.module = _load(self.path, self.device)
        self.has_logits: bool | None = None  # known after the first batch

    @property
    def label(self) -> str:
        return f"{self.path.name}@{self.sha256[:8]}"

    def describe(self) -> dict[str, Any]:
        return {
            "extractor": self.path.name,
            "extractor_sha256": self.sha256,
            "extractor_is_reference": False,
            "backend": None,
            "resize": "by the extractor",
            "precision": "the extractor's",
            "fast": False,
        }

    @torch.no_grad()
    def __call__(self, images: Images) -> Extracted:
        return by_shape(images, self._run)

    def _run(self, images: torch.Tensor) -> Extracted:
        try:
            output = self.module(images.to(self.device))
        except Exception as error:  # whatever a stranger's module raises
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{self.path} fails on uint8 images {tuple(images.shape)}: {reason} (a module of "
                "torch.export needs a dynamic batch dimension, and one for each size of images)"
            ) from None
        outputs = output if isinstance(output, tuple | list) else (output,)
        names = "features", "logits"
        if not 1 <= len(outputs) <= 2:
            raise InputError(
                f"{self.path} returns {len(outputs)} values, not {' and '.join(names)}"
            )
        for name, value in zip(names, outputs, strict=False):
            if not isinstance(value, torch.Tensor) or value.dim() != 2:
                shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value)
                raise InputError(f"{self.path}: its {name} are {shape}, not (images, numbers)")
            finite = torch.isfinite(value)
            if len(value) != len(images) or not finite.all():
                found = "all finite"
                if not finite.all():
                    row, column = (~finite).nonzero()[0].tolist()
                    found = f"not {found}: [{row}, {column}] is {value[row, column].item()}"
                raise InputError(
                    f"{self.path}: its {name} for {len(images)} images are {tuple(value.shape)}, "
                    f"{found}"
                )
        if self.has_logits is None:
            self.has_logits = len(outputs) == 2
        return outputs[0].float(), outputs[1].float() if len(outputs) == 2 else None


def by_shape(images: Images, run: Callable[[torch.Tensor], Extracted]) -> Extracted:
    """What ``run`` gives for images, those of one size together, in the order of the images.

    Raises:
        InputError: it gives images of two sizes features, or logits, of two lengths.
    """
    if isinstance(images, torch.Tensor):
        return run(images)
    order, features, logits = [], [], []
    shapes = list(dict.fromkeys(tuple(image.shape) for image in images))
    for shape in shapes:
        places = [k for k, image in enumerate(images) if tuple(image.shape) == shape]
        order += places
        of, values = run(torch.stack([images[k] for k in places]))
        features.append(of)
        logits += [] if values is None else [values]
    for name, parts in (("features", features), ("logits", logits)):
        if len({part.shape[1] for part in parts}) > 1:
            found = (f"{tuple(s)}: {p.shape[1]}" for s, p in zip(shapes, parts, strict=True))
            raise InputError(
                f"the feature extractor gives images of different sizes {name} of different "
                f"lengths ({', '.join(found)}); it must do its own resizing"
            )
    back = torch.tensor(order).argsort().to(features[0].device)
    return torch.cat(features)[back], torch.cat(logits)[back] if logits else None


def _load(path: Path, device: torch.device) -> torch.nn.Module:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is announced to go
            if "archive_format" in names:
                return torch.export.load(path).module().to(device)
            return torch.jit.load(path, map_location=device).eval()
    except Exception as error:  # both loaders raise many kinds for files of other kinds
        raise InputError(
            f"--feature-extractor: {path} is no module of torch.jit.save or torch.export.save: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
