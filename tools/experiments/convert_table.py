#!/usr/bin/env python
"""Convert the models of torchvision and timm and print what each lost, as a table in Markdown.

Every model is converted to the layer, run for one training step, and run in evaluation mode; that
no activation reads what a norm-activation layer returns is checked while it runs. Models have no
pretrained weights, images are random and small. A model of more parameters than --largest is
converted and run without values, on PyTorch's meta device.

examples:
  tools/experiments/convert_table.py torchvision detection timm
  tools/experiments/convert_table.py --norm "EvoNormB0" timm:resnet50 resnet50

exit status: 0 done, 1 a model failed, 2 bad input
"""

import argparse
import sys
from collections import Counter

import torch

from evonorm_plugins import get_norm_act
from evonorm_plugins.conversion import activations_after_norm_acts, convert
from evonorm_plugins.conversion.models import build_model
from evonorm_plugins.errors import ConvertError

DETECTORS = (
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_fpn"),
    *("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn"),
    *("maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn"),
    *("retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large"),
)
# One of each family that has batch or group normalization of images.
TIMM = (
    *("resnet50", "resnet50_gn", "seresnext26d_32x4d", "ecaresnet26t", "resnetv2_50", "skresnet18"),
    *("resnetv2_50x1_bit", "res2net50_14w_8s", "resnest14d", "regnety_002", "regnetz_005"),
    *("efficientnet_b0", "tf_efficientnetv2_b0", "mobilenetv2_050", "mobilenetv3_small_050"),
    *("mobilenetv4_conv_small", "mixnet_s", "mnasnet_small", "semnasnet_075", "fbnetc_100"),
    *("hardcorenas_a", "lcnet_050", "tinynet_e", "ghostnet_050", "rexnet_100", "hrnet_w18_small"),
    *("dla34", "densenet121", "dpn48b", "inception_v3", "inception_v4", "inception_resnet_v2"),
    *("xception41", "legacy_xception", "vgg11_bn", "cspresnet50", "darknet53", "vovnet39a"),
    *("selecsls42", "gernet_s", "hgnetv2_b0", "tresnet_m", "mobilevit_xxs", "repvgg_a0"),
    *("convnext_atto", "nasnetalarge", "pnasnet5large", "dm_nfnet_f0", "vit_tiny_patch16_224"),
)
COLUMNS = ("with activation", "affine", "left", "removed", "that stay, and after what")


def torchvision_classifiers():
    from torchvision import models

    families = ("resn", "wide", "mobilenet", "mnasnet", "efficientnet", "regnet", "densenet")
    families += ("shufflenet", "googlenet", "inception", "vgg")
    names = models.list_models(module=models)
    plain = ("vgg11", "vgg13", "vgg16", "vgg19")  # without norms
    return [n for n in names if n.startswith(families) and n not in plain]


def build(name):
    options = {"min_size": 64, "max_size": 64, "num_classes": 3}
    fixed = not is_detector(name) or "ssd" in name  # its size is in its name
    return build_model(name, **({} if fixed else options))


def is_detector(name):
    return name.removeprefix("torchvision:") in DETECTORS


def check(model, norm, largest, detector):
    """Convert, train one step, run; returns the report and what did not go well.

    Raises:
        ConvertError: the model cannot be converted, or does not run.
    """
    device = "meta" if sum(p.numel() for p in model.parameters()) > largest else "cpu"
    model = model.to(device)
    converted, report = convert(model, norm)
    try:
        found = run(converted, device, detector)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConvertError(f"does not run: {str(error).partition(chr(10))[0]}") from error
    return report, found


def run(model, device, detector):
    """One training step, one evaluation; returns activations of what is activated already."""
    torch.manual_seed(0)
    # The poolings of Inceptions need more, and the auxiliary head of v3 exactly this.
    name = type(model).__name__
    pixels = 299 if name == "Inception3" else 128 if "Inception" in name else 64
    x = torch.rand(2, 3, pixels, pixels, device=device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    if detector:
        target = {
            "boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, pixels, pixels, dtype=torch.uint8),
            "keypoints": torch.tensor([[[20.0, 20.0, 1.0]] * 17]),
        }
        inputs = (list(x),)
        loss = sum(model.train()(*inputs, [target, target]).values())
    else:
        inputs = (x,)
        outputs = model.train()(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum(y.float().square().mean() for y in outputs if y is not None)
    loss.backward()
    optimizer.step()
    if device != "meta" and not torch.isfinite(loss):
        raise ValueError(f"the loss is {loss.item()}")
    with torch.no_grad():
        return activations_after_norm_acts(model.eval(), *inputs)


def row(name, report):
    counts = report.counts()
    cells = [str(counts[key]) for key in ("replaced", "affine")]
    left = Counter(reason.partition(":")[0] for reason in report.left.values())
    cells.append(_listed(left))
    cells.append(str(counts["removed"]))
    cells.append(_listed(Counter(_kind(origin) for origin in report.stays.values())))
    return f"| `{name}` | " + " | ".join(cells) + " |"


def _first(error):
    """The first place that an error names, and how many more there are."""
    lines = [line.strip() for line in str(error).splitlines()]
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    return lines[-1 if len(lines) == 1 else 1] + more


def _kind(origin):
    first = origin.split(", ")[0]
    return first if first.startswith(("a ", "an ", "the ")) else first.split()[0]


def _listed(counter):
    return ", ".join(f"{count} {what}" for what, count in counter.most_common()) or "0"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="name of a model, or torchvision, detection, timm for a list of them",
    )
    parser.add_argument("--norm", default="EvoNormS0", help="layer (%(default)s)")
    parser.add_argument(
        "--largest",
        type=float,
        default=1.5e8,
        metavar="PARAMETERS",
        help="run larger models without values (%(default)g)",
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    lists = {
        "torchvision": torchvision_classifiers,
        "detection": lambda: DETECTORS,
        "timm": lambda: [f"timm:{name}" for name in TIMM],
    }
    names = [n for asked in args.models for n in (lists[asked]() if asked in lists else [asked])]
    print("| model | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    refused, failed = [], False
    for number, name in enumerate(names, 1):
        print(f"{number}/{len(names)} {name}", file=sys.stderr)
        try:
            model = build(name)
            get_norm_act(args.norm, 32)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        try:
            report, found = check(model, args.norm, args.largest, is_detector(name))
        except ConvertError as error:
            refused.append(f"- `{name}`: {_first(error)}")
            failed = failed or "does not run" in str(error)
            continue
        print(row(name, report), flush=True)
        if found:
            failed = True
            print(f"error: {name}: {found} activate what is activated", file=sys.stderr)
    print("\n" + "\n".join(refused))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
