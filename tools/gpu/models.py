"""One training step of whole models, with BN, GN, S0 and B0.

ResNet-50 (pre-activation) and BigGAN-deep are this package's own, Mask R-CNN is torchvision's.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from evonorm_plugins.benchmarks import measure
from gpu.sections import is_there

NORMS = ("BN-ReLU", "GN-ReLU", "EvoNormS0", "EvoNormB0")
ROUNDS, SECONDS, WARMUP = 10, 8.0, 2


@dataclass(frozen=True)
class Size:
    """What of a model is drawn; the second ones are those of a dry run."""

    images: int
    height: int
    width: int


def run_models(section):
    """Rows of every model, in float32 and in bfloat16 by autocast."""
    cases = [
        ("resnet50", Size(4, 224, 224), "float32"),
        ("resnet50", Size(64, 224, 224), "bfloat16"),
        ("mask_rcnn", Size(1, 800, 1216), "bfloat16"),
        ("biggan", Size(32, 128, 128), "bfloat16"),
        ("mask_rcnn", Size(4, 800, 1216), "bfloat16"),
        ("resnet50", Size(64, 224, 224), "float32"),
        ("resnet50", Size(4, 224, 224), "bfloat16"),
        ("mask_rcnn", Size(1, 800, 1216), "float32"),
    ]
    if section.dry_run:
        cases = [
            ("resnet50", Size(2, 32, 32), "float32"),
            ("mask_rcnn", Size(1, 64, 96), "bfloat16"),
            ("biggan", Size(4, 32, 32), "float32"),
        ]
    if not is_there("torchvision"):
        section.skip("mask_rcnn", "torchvision is not installed")
        cases = [case for case in cases if case[0] != "mask_rcnn"]
    for name, size, dtype in cases:
        shown = f"model: {name} {size.images}x3x{size.height}x{size.width} {dtype}"
        section.attempt(shown, measure_model, section, name, size, dtype)


def measure_model(section, name, size, dtype):
    """Milliseconds and most memory of a step with every norm, in turns."""
    norms = NORMS[::2] if section.dry_run else NORMS
    clock = measure.make_clock(section.device)
    steps = {norm: STEPS[name](norm, size, dtype, section) for norm in norms}

    def timed(step):
        clock.flush()
        start = clock.mark()
        step()
        return {"step": clock.milliseconds(start, clock.mark())}

    runs = {norm: lambda step=step: timed(step) for norm, step in steps.items()}
    rounds, warmup = (1, 0) if section.dry_run else (ROUNDS, WARMUP)
    times = measure.interleave(runs, rounds, SECONDS, warmup)
    for norm, step in steps.items():
        section.record(
            "model",
            model=name,
            images=size.images,
            size=f"{size.height}x{size.width}",
            dtype=dtype,
            norm=norm,
            **measure.quantiles(times[norm]["step"]),
            rounds=len(times[norm]["step"]),
            peak_MiB=peak_of(step, section.device),
        )


def peak_of(step, device):
    """MiB of tensors above those before a step; None on a CPU, where a process says nothing."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = measure.used_bytes(device)
    step()
    return round((measure.used_bytes(device, peak=True) - before) / measure.MIB, 1)


def _trained(model, loss, dtype, device):
    """A function that does one step of SGD, whose rate of 0 leaves everything as it is."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def _resnet50(norm, size, dtype, section):
    from evonorm_plugins.classification.models import build_model

    device = section.device
    width = {"width": 0.125} if section.dry_run else {}
    model = build_model("preact_resnet50", 1000, norm, **width).to(device)
    images = torch.randn(size.images, 3, size.height, size.width, device=device)
    labels = torch.arange(size.images, device=device)
    criterion = torch.nn.functional.cross_entropy
    return _trained(model, lambda: criterion(model(images), labels), dtype, device)


def _mask_rcnn(norm, size, dtype, section):
    from evonorm_plugins.integrations.torchvision.models import SMALL, build_detector

    device = section.device
    name = SMALL if section.dry_run else "maskrcnn_resnet50_fpn_v2"
    sides = {"min_size": (size.height,), "max_size": size.width}
    torch.manual_seed(0)
    model, _ = build_detector(name, 80, "none" if norm == "BN-ReLU" else norm, **sides)
    # Proposals are the anchors, whatever a norm makes of an untrained model: heads of all get the
    # same regions.
    for parameter in (*model.rpn.head.cls_logits.parameters(),):
        torch.nn.init.zeros_(parameter)
    for parameter in model.rpn.head.bbox_pred.parameters():
        torch.nn.init.zeros_(parameter)
    model.to(device).train()
    images = list(torch.rand(size.images, 3, size.height, size.width, device=device))
    targets = [_objects(size, device) for _ in images]
    return _trained(model, lambda: sum(model(images, targets).values()), dtype, device)


def _objects(size, device, number=8):
    """Boxes of a fifth to three fifths of an image, and their masks."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.tensor([size.width, size.height])
    spans = sides * (0.2 + 0.4 * torch.rand(number, 2, generator=generator))
    corners = (sides - spans) * torch.rand(number, 2, generator=generator)
    boxes = torch.cat([corners, corners + spans], 1)
    masks = torch.zeros(number, size.height, size.width, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    labels = torch.arange(1, number + 1)
    found = {"boxes": boxes, "labels": labels, "masks": masks}
    return {key: tensor.to(device) for key, tensor in found.items()}


def _biggan(norm, size, dtype, section):
    from benchmarks.gan import our_step

    options = SimpleNamespace(
        resolution=size.height,
        channels=8 if section.dry_run else 128,
        batch=size.images,
        precision="bf16" if dtype == "bfloat16" else "fp32",
        device=section.device,
        compile=False,
        ranks=1,
    )
    return our_step(options, norm)


STEPS = {"resnet50": _resnet50, "mask_rcnn": _mask_rcnn, "biggan": _biggan}
