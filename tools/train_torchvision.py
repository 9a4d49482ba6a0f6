#!/usr/bin/env python
"""Train and evaluate a detector of torchvision with any norm-activation layer, from scratch.

Needs no Detectron2. The data are in COCO's format. OUTPUT_DIR gets checkpoint.pt, steps.csv,
detections.json (COCO's result format), results.json, predictions.png and log.txt.
"""

import argparse
import ast
import importlib.util
import logging
import sys
from dataclasses import fields

EXAMPLES = """
examples:
  train Mask R-CNN with EvoNormS0 in place of its norms:
    tools/train_torchvision.py --model maskrcnn_resnet50_fpn_v2 --norm EvoNormS0 --batch 16 \\
        --train-json train.json --train-images train/ --val-json val.json --val-images val/
  go on after an interruption: the same with --resume
  another number of detections, and of boxes that are sampled (arguments of torchvision's model):
    tools/train_torchvision.py ... box_detections_per_img=300 box_batch_size_per_image=256
  evaluate:
    tools/train_torchvision.py --eval-only --weights output/torchvision/checkpoint.pt \\
        --model maskrcnn_resnet50_fpn_v2 --val-json val.json --val-images val/ --output-dir output/e

exit status: 0 done, 1 failed, 2 bad input
"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("data, in COCO's format").add_argument
    for split, purpose in (("train", "training"), ("val", "evaluation")):
        add(f"--{split}-json", metavar="FILE", help=f"annotations for {purpose}")
        add(f"--{split}-images", metavar="DIR", help="folder of its images")
    add("--allow-empty-categories", action="store_true", help="train although some have no objects")
    add = parser.add_argument_group("model").add_argument
    add("--model", help="its name in torchvision; a wrong name lists all")
    add("--norm", help='layer in place of norms and activations; "none": the model as it is')
    add("--weights", metavar="FILE", help="checkpoint to start from, or to evaluate")
    add("--min-size", type=int, nargs="+", metavar="N", help="shorter side of an image, in pixels")
    add("--max-size", type=int, metavar="N", help="limit of the longer side")
    add("model_options", nargs="*", type=_pair, metavar="KEY=VALUE", help="of torchvision's model")
    add = parser.add_argument_group("training").add_argument
    add("--batch", type=int, metavar="N", help="images per iteration")
    add("--iterations", type=int, metavar="N")
    add("--lr", type=float, help="rate after the warm-up (default: 0.02 / 16 for each image)")
    add("--momentum", type=float)
    add("--weight-decay", type=float)
    add("--norm-weight-decay", type=float)
    add("--warmup", type=int, metavar="N", help="iterations in which the rate rises")
    add("--warmup-factor", type=float, metavar="X", help="of the rate, to start with")
    add("--schedule", choices=("multistep", "cosine"))
    add("--steps", type=int, nargs="+", metavar="N", help="a tenth of the rate from these on "
        "(default: 3/4 and 11/12 of all)")  # fmt: skip
    add("--clip-gradients", type=float, metavar="X", help="limit of their norm; 0: none")
    add("--no-flip", dest="flip", action="store_false", help="do not mirror training images")
    add("--seed", type=int)
    add = parser.add_argument_group("run").add_argument
    add("--output-dir", metavar="DIR")
    add("--resume", action="store_true", help="go on with the run in OUTPUT_DIR, if there is one")
    add("--eval-only", action="store_true")
    add("--eval-every", type=int, metavar="N", help="iterations; 0: at the end alone")
    add("--checkpoint-every", type=int, metavar="N", help="iterations; 0: at the end alone")
    add("--log-every", type=int, metavar="N")
    add("--workers", type=int, metavar="N", help="processes that read images")
    add("--device", help="cuda, cuda:1, cpu (default: cuda where there is one)")
    return parser.parse_args(argv)


def _pair(text):
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise argparse.ArgumentTypeError(
            f"{text!r}: {value!r} is no number, tuple or text in quotes"
        ) from None


def main(argv=None):
    args = parse_args(argv)
    if importlib.util.find_spec("torchvision") is None:
        missing = 'torchvision is not installed: pip install "evonorm-plugins[detection]"'
        print(f"error: {missing}", file=sys.stderr)
        return 2
    from evonorm_plugins.errors import InputError, RunError
    from evonorm_plugins.integrations.torchvision import Options, Run

    logger = logging.getLogger("evonorm_plugins")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(sys.stdout))
    given = {f.name: getattr(args, f.name) for f in fields(Options)}
    given["model_options"] = dict(args.model_options)
    options = Options(**{key: value for key, value in given.items() if value is not None})
    try:
        run = Run(options, resume=args.resume, evaluate_only=args.eval_only)
        run.evaluate() if args.eval_only else run.train()
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
