"""The Inception of 2015, in the layers of torch-fidelity and of pytorch-fid.

The two tools load the same weights into the same graph and differ in what they feed it: see
:data:`RESIZES`. Here each backend runs that tool's own layers after that tool's own resizing, so
that features are the same to the last bit in batches of the same size. ``fast`` folds batch norms
into convolutions and takes images channels-last: 1.7 times as fast on a CPU, and features move by
3e-7 of their size.
"""

import contextlib
import os
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evonorm_plugins.errors import InputError, MissingDependencyError, first
from evonorm_plugins.metrics import weights
from evonorm_plugins.metrics.data import Images
from evonorm_plugins.metrics.protocol import BACKENDS, PRECISIONS

SIDE = 299  # pixels that the network sees
RESIZES = {
    "torch-fidelity": "bilinear as in TensorFlow 1.x (corners of pixels), then (x - 128) / 128",
    "pytorch-fid": "bilinear as in PyTorch (centres of pixels, no antialias), then 2 x / 255 - 1",
}
BATCH_SIZES = {"torch-fidelity": 64, "pytorch-fid": 50}  # the tools' own
# In the order that torch-fidelity applies them.
_LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"),
    *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a"),
    *("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)


class InceptionExtractor(nn.Module):
    """uint8 images (B, 3, H, W), or a list of (3, H, W), to features and logits.

    Features are (B, 2048) float32; logits (B, 1008) float32 without the bias, as the Inception
    score of torch-fidelity and of OpenAI's code takes them.

    Args:
        path: weights file, from :func:`evonorm_plugins.metrics.weights.find_inception_weights`.
        sha256: of that file.
        backend: whose layers and resizing; one of ``BACKENDS``.
        precision: of the network, "float32" or "bfloat16"; resizing is float32 always.
        fast: fold and reorder, see above.

    Raises:
        InputError: the file is none of these weights.
    """

    has_logits = True
    classes: torch.Tensor  # weights of the last layer, (1008, 2048)

    def __init__(
        self,
        path: str | os.PathLike,
        sha256: str,
        *,
        backend: str = "torch-fidelity",
        precision: str = "float32",
        fast: bool = False,
    ) -> None:
        super().__init__()
        if backend not in RESIZES:
            raise InputError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
        self.backend, self.precision, self.sha256 = backend, precision, sha256
        self.fast = fast
        state = read_state(path)
        build = _torch_fidelity if backend == "torch-fidelity" else _pytorch_fid
        try:
            self.trunk = build(path, state)
            self.register_buffer("classes", state["fc.weight"].float())
        except (RuntimeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} does not hold the weights of FID's Inception (torchvision's are others): "
                f"{reason[:200]}"
            ) from None
        self.trunk.eval().requires_grad_(False)
        self._layout = torch.channels_last if fast else torch.contiguous_format
        if fast:
            _fold_batch_norms(self.trunk)
        self.trunk.to(dtype=getattr(torch, precision)).to(memory_format=self._layout)

    @property
    def is_reference(self) -> bool:
        """Whether the weights are those that FID and IS are defined by."""
        return self.sha256 == weights.SHA256

    @property
    def label(self) -> str:
        """What must stand beside its scores; empty for the reference in float32."""
        name = "" if self.is_reference else f"inception-2015@{self.sha256[:8]}"
        return ", ".join(p for p in (name, self.precision) if p and p != "float32")

    def describe(self) -> dict[str, Any]:
        """What belongs to the protocol."""
        return {
            "extractor": "inception-v3-2015-12-05",
            "extractor_sha256": self.sha256,
            "extractor_is_reference": self.is_reference,
            "backend": self.backend,
            "resize": RESIZES[self.backend],
            "precision": self.precision,
            "fast": self.fast,
        }

    @torch.inference_mode()
    def forward(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        x = resized(images, self.backend, self.classes.device)
        x = x.to(dtype=getattr(torch, self.precision), memory_format=self._layout)
        features = self.trunk(x).flatten(1).float()
        return features, features @ self.classes.T


def resized(images: Images, backend: str, device: str | torch.device = "cpu") -> torch.Tensor:
    """uint8 images of any sizes to what the network sees: (B, 3, 299, 299) float32."""
    resize = _resize_tensorflow if backend == "torch-fidelity" else _resize_pytorch
    if isinstance(images, torch.Tensor):
        return resize(images.to(device, non_blocking=True))
    return torch.cat([resize(image[None].to(device)) for image in images])


def _resize_pytorch(images: torch.Tensor) -> torch.Tensor:
    x = images.float() / 255
    if x.shape[2:] != (SIDE, SIDE):
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * x - 1


def _resize_tensorflow(images: torch.Tensor) -> torch.Tensor:
    # Columns, then rows: the sums of TensorFlow's kernel in its order, in fewer of them.
    x = _stretch(_stretch(images.float(), 3), 2)
    return (x - 128) / 128


def _stretch(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Linear interpolation to 299 along ``dim``; output k lies at k * size / 299, as in TF 1.x."""
    size = x.shape[dim]
    if size == SIDE:
        return x
    at = torch.arange(SIDE, dtype=torch.float32, device=x.device)
    at = at * torch.tensor(size / SIDE, dtype=torch.float32)
    low = at.long()
    share = (at - low).view(-1, *[1] * (3 - dim))
    below = x.index_select(dim, low)
    above = x.index_select(dim, (low + 1).clamp_max(size - 1))
    return below + (above - below) * share


def read_state(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a weights file.

    Raises:
        InputError: it cannot be read, holds other things, or numbers that are not finite.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise InputError(
            f"{path} cannot be read as weights, it is cut off or something else: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(
            f"{path} holds a {type(state).__name__} that is no state dict of tensors"
            + (f"; its keys are {first(state)}" if isinstance(state, dict) else "")
        )
    broken = [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(f"{path} holds weights that are NaN or infinite: {first(broken, 1)}")
    return state


def _torch_fidelity(path: str | os.PathLike, state: dict[str, torch.Tensor]) -> nn.Sequential:
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as module
    except ImportError:
        raise MissingDependencyError("torch-fidelity") from None
    # Its constructor would read the file again, with pickle's full powers.
    with mock.patch.object(module.torch, "load", return_value=state):
        net = module.FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(path)
        )
    return nn.Sequential(*(getattr(net, name) for name in _LAYERS))


def _pytorch_fid(path: str | os.PathLike, state: dict[str, torch.Tensor]) -> nn.Sequential:
    try:
        from pytorch_fid import inception as module
    except ImportError:
        raise MissingDependencyError("pytorch-fid") from None
    # Its constructor would download the file.
    with mock.patch.object(module, "load_state_dict_from_url", return_value=state):
        net = module.InceptionV3([3], resize_input=False, normalize_input=False)
    return nn.Sequential(*net.blocks)


def _fold_batch_norms(trunk: nn.Module) -> None:
    for module in trunk.modules():
        conv, bn = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(conv, bn)
            module.bn = nn.Identity()


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 on GPUs: features would depend on the card."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
