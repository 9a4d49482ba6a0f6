"""Pictures made on the spot, and an Inception of random weights in the reference format."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

WEIGHTS_NAMES = (
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
)


def random_inception(seed=0):
    """State dict of FID's Inception whose features differ between pictures as trained ones do."""
    from pytorch_fid import inception
    from torchvision.models import inception_v3

    with torch.device("meta"):
        net = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
        net.Mixed_5b = inception.FIDInceptionA(192, pool_features=32)
        net.Mixed_5c = inception.FIDInceptionA(256, pool_features=64)
        net.Mixed_5d = inception.FIDInceptionA(288, pool_features=64)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            setattr(net, f"Mixed_{name}", inception.FIDInceptionC(768, channels_7x7=width))
        net.Mixed_7b = inception.FIDInceptionE_1(1280)
        net.Mixed_7c = inception.FIDInceptionE_2(2048)
    generator = torch.Generator().manual_seed(seed)
    return {k: _drawn(k, v.shape, generator) for k, v in net.state_dict().items()}


def _drawn(key, shape, generator):
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if len(shape) == 4:
        weight = torch.randn(shape, generator=generator)
        # Without a mean, filters see edges; with one, all features are brightness.
        weight -= weight.mean((1, 2, 3), keepdim=True)
        return weight * (2.6 / weight[0].numel()) ** 0.5
    if key == "fc.weight":
        return torch.randn(shape, generator=generator) * 0.1
    if key.endswith(("running_var", "bn.weight")):
        return torch.rand(shape, generator=generator) + 0.5
    return torch.randn(shape, generator=generator) * 0.1


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """Path of the random weights, in a folder that torch's hub can be pointed to."""
    folder = tmp_path_factory.mktemp("torch") / "hub/checkpoints"
    folder.mkdir(parents=True)
    torch.save(random_inception(), folder / WEIGHTS_NAMES[0])
    os.link(folder / WEIGHTS_NAMES[0], folder / WEIGHTS_NAMES[1])
    return folder / WEIGHTS_NAMES[0]


def pictures(n, size=48, seed=0):
    """uint8 (n, size, size, 3): smooth colours with a rectangle each."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 5, 5, 3)).astype(np.uint8)
    out = np.empty((n, size, size, 3), np.uint8)
    for k in range(n):
        smooth = Image.fromarray(coarse[k]).resize((size, size), Image.Resampling.BICUBIC)
        out[k] = np.asarray(smooth)
        x, y, w, h = rng.integers(2, size // 2, 4)
        out[k, y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return out


def save_pngs(images, folder):
    """Write images as 0000.png ... and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{k:04d}.png")
    return folder
