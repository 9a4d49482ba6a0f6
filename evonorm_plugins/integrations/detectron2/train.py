"""Train and evaluate any Detectron2 config, with every registered norm-activation as a NORM.

YAML configs take options as KEY VALUE, LazyConfigs (.py) as key=value.

Detectron2's own command line, and:
  --train-json, --train-images, --val-json, --val-images   any dataset in COCO's format
  the evaluators of every task; what it lacks is said before training
  the learning rate is scaled when SOLVER.IMS_PER_BATCH differs from the config file's
  results.json and predictions.png in OUTPUT_DIR at the end
  --num-gpus processes on the CPUs where there is no GPU
  no code is run that a config or weights may hold, unless --trust-config, --trust-weights
"""

import argparse
import sys
from collections.abc import Sequence

from detectron2.engine import default_argument_parser

from evonorm_plugins.errors import run_command
from evonorm_plugins.integrations.detectron2.config import is_lazy
from evonorm_plugins.integrations.detectron2.lazy_run import run_lazy
from evonorm_plugins.integrations.detectron2.run import run

EXAMPLES = """
examples:
  train from scratch on 8 GPUs:
    tools/train_net.py --num-gpus 8 --config-file detectron_configs/stock/mask_rcnn_R_50_FPN_EvoNormS0.yaml
  the same with a dataset of your own, 16 images a step:
    tools/train_net.py --num-gpus 8 --config-file ... --train-json train.json --train-images train/ \\
        --val-json val.json --val-images val/ SOLVER.IMS_PER_BATCH 16 MODEL.ROI_HEADS.NUM_CLASSES 4
  a LazyConfig, here of Detectron2's model zoo:
    tools/train_net.py --config-file COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py \\
        model.backbone.norm=EvoNormS0 train.output_dir=output/lazy
  go on after an interruption:
    tools/train_net.py --resume --config-file ... OUTPUT_DIR output/run1
  start from the convolutions of a backbone with batch normalization:
    tools/train_net.py --drop-norms --config-file ... MODEL.WEIGHTS detectron2://ImageNetPretrained/...
  evaluate:
    tools/train_net.py --eval-only --config-file ... MODEL.WEIGHTS output/run1/model_final.pth
  two machines with 8 GPUs each:
    tools/train_net.py --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT ...

exit status: 0 done, 1 failed, 2 bad input
"""  # noqa: E501


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.description = __doc__
    parser.set_defaults(dist_url="auto")
    data = parser.add_argument_group("a dataset in COCO's format")
    for split, purpose in (("train", "training"), ("val", "evaluation")):
        data.add_argument(f"--{split}-json", metavar="FILE", help=f"annotations for {purpose}")
        data.add_argument(f"--{split}-images", metavar="DIR", help="folder of its images")
    data.add_argument(
        "--allow-empty-categories",
        action="store_true",
        help="train although some categories have no instances",
    )
    trust = parser.add_argument_group("files of others")
    trust.add_argument(
        "--drop-norms",
        action="store_true",
        help="start from MODEL.WEIGHTS that were trained with another norm, without their norms",
    )
    trust.add_argument(
        "--trust-config",
        action="store_true",
        help="run configs that are programs (.py), and build the Python objects that YAML names",
    )
    trust.add_argument(
        "--trust-weights",
        action="store_true",
        help="unpickle weights and proposals that hold more than arrays, which may run any code",
    )
    args = parser.parse_args(argv)
    for split in ("train", "val"):
        json_file, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if bool(json_file) != bool(images):
            parser.error(f"--{split}-json and --{split}-images belong together")
    if not args.config_file:
        parser.error("--config-file is missing")
    if len(args.opts) % 2 and not is_lazy(args.config_file):
        parser.error(f"options come in pairs, KEY VALUE; got {' '.join(args.opts)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse_args(argv)
    work = run_lazy if is_lazy(args.config_file) else run
    return run_command(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
