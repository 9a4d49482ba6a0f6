"""Convert a model of torchvision or timm and say what became of its norms and activations.

Operations are those of one image (of 16 in a video model), before and after: multiply-adds of
convolutions and other matrix products, each counted as one, and element-wise operations of
everything else (batch normalization 2 for each element, other norms 5). Nothing is downloaded: the
numbers do not depend on weights (in a detector those of regions do, which random weights choose).
"""

import json

from evonorm_plugins.cli.types import count
from evonorm_plugins.errors import ConvertError
from evonorm_plugins.text_table import aligned

EXAMPLES = """
examples:
  evonorm convert resnet50 EvoNormS0
  evonorm convert timm:mobilenetv3_large_100 "EvoNormS0(groups=16)" --size 160
  evonorm convert maskrcnn_resnet50_fpn EvoNormB0 --json
"""


def add_arguments(parser):
    parser.add_argument("model", help="torchvision:NAME, timm:NAME, or NAME of either")
    parser.add_argument("norm", help="layer, such as EvoNormS0 or 'EvoNormS0(groups=16)'")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="NAME",
        help="norm to leave as it is, * and ? match any characters; can be repeated",
    )
    parser.add_argument(
        "--size",
        type=count,
        metavar="PIXELS",
        help="width and height of the image (default: the model's own, or 224)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def measure(model, size=None):
    """``{"parameters": ..., "multiply_adds": ..., "element_wise": ...}`` of one image.

    Raises:
        ConvertError: the model does not run on an image of that size.
    """
    from evonorm_plugins.conversion.models import example_inputs
    from evonorm_plugins.flops import count_flops

    inputs = example_inputs(model, size)
    try:
        count = count_flops(model, *inputs)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        shown = str(error).strip().partition("\n")[0]
        raise ConvertError(f"the model does not run on an image of --size: {shown}") from error
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": count.matrix,
        "element_wise": count.elementwise,
    }


def run(args):
    from evonorm_plugins.conversion import convert
    from evonorm_plugins.conversion.models import build_model

    model = build_model(args.model)
    converted, report = convert(model, args.norm, keep=args.keep)
    before, after = measure(model, args.size), measure(converted, args.size)
    if args.json:
        result = {"model": args.model, **report.to_dict(), "before": before, "after": after}
        print(json.dumps(result, indent=1))
    else:
        print(report)
        rows = [("", "before", "after")]
        rows += [(key.replace("_", "-"), f"{before[key]:,}", f"{after[key]:,}") for key in before]
        print(aligned(rows))
