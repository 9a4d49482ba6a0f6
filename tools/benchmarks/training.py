"""One training iteration of whole models, with any norm: what tools/benchmark.py models measures.

A norm is ``BN``, ``GN`` or what ``evonorm_plugins.get_norm_act`` knows, options included:
``EvoNormS0(impl='torch')``.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from evonorm_plugins.benchmarks.measure import (
    MIB,
    apart,
    environment,
    interleave,
    kept_bytes,
    make_clock,
    quantiles,
    say,
    used_bytes,
)
from evonorm_plugins.errors import RunError
from evonorm_plugins.registry import get_norm_act, is_norm_act, list_norm_acts, try_norm_act

CONFIG = Path(__file__).resolve().parents[2] / "detectron_configs/Base-Mask-RCNN-FPN.yaml"
STOCK_NORMS = {"BN": nn.BatchNorm2d, "GN": functools.partial(nn.GroupNorm, 32)}
OBJECTS = 8
# How names of timm's models end that have other norms than batch normalization.
TIMM_NORMS = ("evos", "evob", "gn", "frn")
WARMUP = 1


def run_models(args):
    """Rows of all models that can be built here, one for each norm."""
    rows = []
    for name in dict.fromkeys(args.models):
        why = missing(name)
        if why:
            say(f"{name} is left out: {why}")
        else:
            rows += run_model(args, name, list(dict.fromkeys(args.norms)))
    if not rows:
        raise RunError("no model is left to measure")
    return rows


def run_model(args, name, norms):
    """Rows of one model, one for each norm."""
    known = known_model(name)
    size = args.size or known.size
    say(f"{name} at {size}: memory, norm by norm")
    needed = {norm: memory(name, norm, size, args.device, args.threads) for norm in norms}
    say(f"{name} at {size}: time")
    clock = make_clock(args.device)
    runs = {
        norm: functools.partial(Training(name, norm, size, args.device).time, clock)
        for norm in norms
    }
    times = interleave(runs, args.rounds, warmup=WARMUP)
    return [
        {
            "model": name,
            "norm": norm,
            "images": known.images,
            "size": size,
            **environment(args.device),
            **quantiles(times[norm]["iteration"]),
            "rounds": len(times[norm]["iteration"]),
            **needed[norm],
        }
        for norm in norms
    ]


def missing(name):
    """None, or why the model ``name`` cannot be built here."""
    needs = MODELS[name].needs
    try:
        importlib.import_module(needs)
    except ImportError as error:
        return f"it needs {needs.partition('.')[0]}, which cannot be imported ({error})"
    return None


def check_norm(norm):
    """Raises ValueError, or TypeError for an option, if there is no such norm."""
    if norm in STOCK_NORMS:
        return
    if not is_norm_act(norm):
        known = ", ".join([*STOCK_NORMS, *list_norm_acts()])
        raise ValueError(f"there is no such norm; known: {known}")
    try_norm_act(norm, device="meta")


class Training:
    """A model, a batch made up for it and SGD: what one training iteration takes.

    The rate is 0: a step costs what it costs with any other, and every iteration computes the same.
    """

    def __init__(self, name, norm, size, device="cpu"):
        torch.manual_seed(0)
        known = known_model(name)
        self.model = known.build(norm).to(device)
        self.batch = known.make_batch(known.images, size, device)
        self.model.train()
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=0.9)

    def loss(self):
        return self.model(*self.batch)

    def iterate(self):
        self.sgd.zero_grad()
        self.loss().backward()
        self.sgd.step()

    def time(self, clock):
        clock.flush()
        start = clock.mark()
        self.iterate()
        return {"iteration": clock.milliseconds(start, clock.mark())}

    def kept_bytes(self):
        known = [*self.model.parameters(), *self.model.buffers()]
        return kept_bytes(self.loss, known)


class Classifier(nn.Module):
    """A network that classifies and its loss."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, labels):
        return nn.functional.cross_entropy(self.network(images), labels)


def _resnet50(norm):
    return Classifier(_resnet50_of_torchvision(norm))


def _resnet50_of_torchvision(norm):
    from torchvision.models.resnet import Bottleneck, ResNet

    class NormActBottleneck(Bottleneck):
        """Without the ReLUs after the first and the second norm, which hold an activation."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.bn3 = self.bn3.without_activation()
            if self.downsample is not None:
                self.downsample[1] = self.downsample[1].without_activation()

        def forward(self, x):
            out = self.bn1(self.conv1(x))
            out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
            out += x if self.downsample is None else self.downsample(x)
            return self.relu(out)

    blocks = [3, 4, 6, 3]
    if norm in STOCK_NORMS:
        return ResNet(Bottleneck, blocks, norm_layer=STOCK_NORMS[norm])
    layer = functools.partial(get_norm_act, norm)
    model = ResNet(NormActBottleneck, blocks, norm_layer=layer)
    model.relu = nn.Identity()  # of the stem
    return model


def _labelled_images(number, size, device):
    images = torch.randn(number, 3, size, size, device=device)
    return images, torch.arange(number, device=device)


class Detector(nn.Module):
    """Detectron2's Mask R-CNN; its loss is the sum of its losses."""

    def __init__(self, norm):
        super().__init__()
        from detectron2.modeling import build_model

        self.rcnn = build_model(detection_cfg(norm))
        # Proposals are the anchors, whatever the norm makes of an untrained model: the heads of all
        # get the same regions.
        head = self.rcnn.proposal_generator.rpn_head
        nn.init.zeros_(head.objectness_logits.weight)
        nn.init.zeros_(head.anchor_deltas.weight)

    def forward(self, images):
        from detectron2.utils.events import EventStorage

        with EventStorage():
            return sum(self.rcnn(images).values())


def detection_cfg(norm):
    from detectron2.config import get_cfg

    import evonorm_plugins.integrations.detectron2  # noqa: F401

    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    cfg.MODEL.DEVICE = "cpu"
    for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        cfg.MODEL[part].NORM = norm
    # Regions enough, on both sides, to fill the heads: 512 for boxes, of them 128 for masks.
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.2]
    return cfg


def _annotated_images(number, size, device):
    from detectron2.structures import BitMasks, Boxes, Instances

    def draw():
        sides = size * (0.2 + 0.4 * torch.rand(OBJECTS, 2))
        corners = (size - sides) * torch.rand(OBJECTS, 2)
        boxes = torch.cat([corners, corners + sides], 1)
        masks = torch.zeros(OBJECTS, size, size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances = Instances((size, size), gt_boxes=Boxes(boxes), gt_masks=BitMasks(masks))
        instances.gt_classes = torch.arange(OBJECTS)
        image = torch.randint(0, 256, (3, size, size)).float()
        return {"image": image.to(device), "instances": instances.to(device)}

    return ([draw() for _ in range(number)],)


@dataclass(frozen=True)
class Model:
    build: Callable  # norm -> module whose forward returns the loss
    make_batch: Callable  # (number, size, device) -> arguments of its forward
    needs: str  # what has to be imported
    images: int
    size: int


MODELS = {
    "resnet50": Model(_resnet50, _labelled_images, "torchvision", images=8, size=224),
    "mask_rcnn": Model(Detector, _annotated_images, "detectron2._C", images=1, size=640),
}


def known_model(name):
    """The :class:`Model` of that name: of this module's, or ``"timm:NAME"``."""
    library, _, bare = name.rpartition(":")
    if library != "timm":
        return MODELS[name]
    build = functools.partial(_of_timm, bare)
    return Model(build, _labelled_images, "timm", images=8, size=160)


def _of_timm(name, norm):
    """``norm`` "timm" is as timm builds it, "fused" with our layers, "BN" its sibling with BN."""
    import timm

    from evonorm_plugins.integrations.timm import fuse

    network = timm.create_model(bn_sibling(name) if norm == "BN" else name)
    return Classifier(fuse(network).model if norm == "fused" else network)


def bn_sibling(name):
    """timm's model that differs from ``name`` by its batch normalization, or None."""
    import timm

    sibling, _, norm = name.rpartition("_")
    return sibling if norm in TIMM_NORMS and sibling in timm.list_models() else None


def memory(name, norm, size, device="cpu", threads=None):
    """What training takes: ``{"peak_MiB", "kept_MiB"}``, measured in a process of its own.

    ``peak_MiB`` is the largest memory of two iterations above that before them, so gradients and
    momenta are part of it; ``kept_MiB`` is what autograd keeps between forward and backward.

    Raises:
        RunError: the process died, most likely for want of memory.
    """
    return apart(memory_here, name, norm, size, device, threads)


def memory_here(name, norm, size, device, threads):
    """The same of this process, whose peak must lie ahead."""
    if threads:
        torch.set_num_threads(threads)
    training = Training(name, norm, size, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = used_bytes(device)
    training.iterate()
    training.iterate()  # the first one with momenta
    peak = used_bytes(device, peak=True)
    training.sgd.zero_grad()
    return {
        "peak_MiB": round((peak - before) / MIB, 2),
        "kept_MiB": round(training.kept_bytes() / MIB, 2),
    }
