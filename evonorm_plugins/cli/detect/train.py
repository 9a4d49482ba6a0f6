"""Train and evaluate a detector of torchvision with any norm-activation layer, from scratch.

Needs no Detectron2. The data are in COCO's format. OUTPUT_DIR gets checkpoint.pt, steps.csv,
detections.json (COCO's result format), results.json, predictions.png and log.txt.
"""

EXAMPLES = """
examples:
  train Mask R-CNN with EvoNormS0 in place of its norms:
    evonorm detect train --model maskrcnn_resnet50_fpn_v2 --norm EvoNormS0 --batch 16 \\
        --train-json train.json --train-images train/ --val-json val.json --val-images val/
  go on after an interruption: the same with --resume
  another number of detections, and of boxes that are sampled (arguments of torchvision's model):
    evonorm detect train ... box_detections_per_img=300 box_batch_size_per_image=256
  options from a YAML file, one of them changed:
    evonorm detect train --config mine.yaml lr=0.01
  evaluate:
    evonorm detect train --eval-only --weights output/torchvision/checkpoint.pt \\
        --model maskrcnn_resnet50_fpn_v2 --val-json val.json --val-images val/ --output-dir output/e
"""


def add_arguments(parser):
    add = parser.add_argument_group("data, in COCO's format").add_argument
    for split, purpose in (("train", "training"), ("val", "evaluation")):
        add(f"--{split}-json", metavar="FILE", help=f"annotations for {purpose}")
        add(f"--{split}-images", metavar="DIR", help="folder of its images")
    add("--allow-empty-categories", action="store_true", default=None,
        help="train although some have no objects")  # fmt: skip
    add = parser.add_argument_group("model").add_argument
    add("--model", help="its name in torchvision; a wrong name lists all")
    add("--norm", help='layer in place of norms and activations; "none": the model as it is')
    add("--weights", metavar="FILE", help="checkpoint to start from, or to evaluate")
    add("--min-size", type=int, nargs="+", metavar="N", help="shorter side of an image, in pixels")
    add("--max-size", type=int, metavar="N", help="limit of the longer side")
    add = parser.add_argument_group("training").add_argument
    add("--batch", type=int, metavar="N", help="images per iteration")
    add("--iterations", type=int, metavar="N")
    add("--lr", type=float, help="rate after the warm-up (default: 0.02 / 16 for each image)")
    add("--momentum", type=float)
    add("--weight-decay", type=float)
    add("--norm-weight-decay", type=float)
    add("--warmup", type=int, metavar="N", help="iterations in which the rate rises")
    add("--warmup-factor", type=float, metavar="X", help="of the rate, to start with")
    add("--schedule", help="multistep or cosine")
    add("--steps", type=int, nargs="+", metavar="N", help="a tenth of the rate from these on "
        "(default: 3/4 and 11/12 of all)")  # fmt: skip
    add("--clip-gradients", type=float, metavar="X", help="limit of their norm; 0: none")
    add("--no-flip", dest="flip", action="store_false", default=None,
        help="do not mirror training images")  # fmt: skip
    add("--seed", type=int)
    add = parser.add_argument_group("run").add_argument
    add("--config", metavar="FILE", help="YAML file of these options, - written as _")
    add("--output-dir", metavar="DIR")
    add("--resume", action="store_true", help="go on with the run in OUTPUT_DIR, if there is one")
    add("--eval-only", action="store_true")
    add("--eval-every", type=int, metavar="N", help="iterations; 0: at the end alone")
    add("--checkpoint-every", type=int, metavar="N", help="iterations; 0: at the end alone")
    add("--log-every", type=int, metavar="N")
    add("--workers", type=int, metavar="N", help="processes that read images")
    add("--device", help="cuda, cuda:1, cpu (default: cuda where there is one)")
    add("--json", action="store_true", help="results as JSON on stdout, progress on stderr")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="options, or arguments of the model"
    )


def run(args):
    import dataclasses
    import logging
    import sys
    from pathlib import Path

    from evonorm_plugins.integrations.torchvision import Options, Run, load_options

    names = {f.name for f in dataclasses.fields(Options)} - {"model_options"}
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    options = load_options(args.config, args.overrides, given)
    logger = logging.getLogger("evonorm_plugins")
    handler = logging.StreamHandler(sys.stderr if args.json else sys.stdout)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        run = Run(options, resume=args.resume, evaluate_only=args.eval_only)
        run.evaluate() if args.eval_only else run.train()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    if args.json:
        print(Path(options.output_dir, "results.json").read_text(encoding="utf-8"), end="")
