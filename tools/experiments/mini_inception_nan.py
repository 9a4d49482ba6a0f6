#!/usr/bin/env python
"""Train Mini Inception on CIFAR-10 for some steps by the recipe of the study in
docs/mini_inception.md, and say where a value that is not finite comes up first.

examples:
  the study's layers as they ran, which do nothing, with its augmentation and batches of 32:
    tools/experiments/mini_inception_nan.py cifar10-train.zip --norm none
  EvoNorm-S0 in their place:
    tools/experiments/mini_inception_nan.py cifar10-train.zip --norm "EvoNormS0(groups=32)"
"""

import argparse
import io
import math
import sys
import zipfile

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from evonorm_plugins.classification.models.mini_inception import MiniInception
from evonorm_plugins.cli.types import count, positive
from evonorm_plugins.data.augment import random_affine, warp


class Bias(nn.Module):
    """All that the study had between two convolutions: the first one's bias."""

    def __init__(self, channels, *, apply_act):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x):
        return x + self.bias


class Images:
    """Random batches of a zip of class folders: ``(N, 3, 32, 32)`` from 0 to 1, and labels."""

    def __init__(self, path):
        self.archive = zipfile.ZipFile(path)
        self.names = sorted(n for n in self.archive.namelist() if not n.endswith("/"))
        self.classes = sorted({name.split("/")[-2] for name in self.names})

    def batch(self, size, generator):
        chosen = torch.randint(len(self.names), (size,), generator=generator).tolist()
        names = [self.names[i] for i in chosen]
        files = (io.BytesIO(self.archive.read(name)) for name in names)
        pixels = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        return x, torch.tensor([self.classes.index(name.split("/")[-2]) for name in names])


def study_model(norm):
    """Mini Inception with Keras' initialisation and the study's dropout."""
    model = MiniInception(norm=Bias if norm == "none" else norm, dropout=0.5)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
    nn.init.zeros_(model.classifier.bias)
    return model


def train(model, images, args):
    """Print losses; at one that is not finite, the sizes of activations up to it."""
    generator = torch.Generator().manual_seed(args.seed)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[args.optimizer]
    options = {"momentum": 0.9} if args.optimizer == "sgd" else {}
    optimizer = kind(model.parameters(), args.lr, **options)
    sizes, before = {}, {}
    for name, block in [("stem", model.stem), *model.blocks.named_children()]:
        block.register_forward_hook(
            lambda _, __, y, name=name: sizes.update({name: y.detach().abs().max().item()})
        )
    for step in range(args.steps):
        x, y = images.batch(args.batch_size, generator)
        if args.augment:
            x = warp(x, random_affine(len(x), generator))
        loss = F.cross_entropy(model(x), y)
        if not loss.isfinite():
            print(f"step {step}: the loss is {loss.item()}; largest activation after each block")
            for name, size in sizes.items():
                print(f"  {name:>4}: {before.get(name, math.nan):9.3g} before, {size:9.3g} now")
            return 1
        before = dict(sizes)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad or math.inf)
        optimizer.step()
        print(f"step {step}: loss {loss.item():.4g}, norm of the gradients {norm:.3g}", flush=True)
    return 0


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="zip of CIFAR-10's training images in class folders")
    parser.add_argument("--norm", default="none", help="none, or a norm's name")
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batch-size", type=count, default=32)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--lr", type=positive, default=1e-2)
    parser.add_argument("--clip-grad", type=float, default=0.0, help="largest norm; 0: any")
    parser.add_argument("--steps", type=count, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    try:
        images, model = Images(args.data), study_model(args.norm)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return train(model, images, args)


if __name__ == "__main__":
    sys.exit(main())
