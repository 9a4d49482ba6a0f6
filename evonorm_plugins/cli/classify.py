"""The command line of ``tools/train_classifier.py``."""

import argparse
import os
import sys

import torch

from evonorm_plugins.classification.config import load_config
from evonorm_plugins.classification.run import train
from evonorm_plugins.errors import InputError, NonFiniteError, RunError
from evonorm_plugins.training.ranks import Ranks

EXAMPLES = """
examples:
  CIFAR-10, the paper's small MobileNetV2, on whatever this machine has:
    tools/train_classifier.py --config configs/cifar10_mobilenetv2_EvoNormS0.yaml \\
        data=cifar10-train.zip val_data=cifar10-test.zip
  ImageNet on 8 GPUs:
    torchrun --nproc_per_node=8 tools/train_classifier.py \\
        --config configs/imagenet_resnet50_EvoNormS0.yaml data=imagenet/train val_data=imagenet/val
  any model of torchvision or timm, with EvoNorm in place of its norms and activations:
    tools/train_classifier.py --config ... model=torchvision:regnet_y_400mf norm=EvoNormS0
  go on after an interruption (or start, if there is nothing yet):
    tools/train_classifier.py --resume --config ... data=...
  a sweep over options:
    tools/train_classifier.py --sweep configs/mini_inception_sweep.yaml data=... val_data=...
  the same on a Ray cluster whose machines see the same files, after an interruption:
    tools/train_classifier.py --sweep ... --address HOST:6379 --resume data=... val_data=...

exit status: 0 done, 1 failed or stopped, 2 bad input
"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="tools/train_classifier.py",
        description="Train an image classifier with any norm of evonorm_plugins, in one process or "
        "in many.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE", help="YAML file of configs/, or your own")
    what.add_argument("--sweep", metavar="FILE", help="YAML file of a sweep over options")
    parser.add_argument("--resume", action="store_true", help="go on with the run in output_dir")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster for the sweep; else this machine"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options over the file's")
    args = parser.parse_intermixed_args(argv)
    if args.address and not args.sweep:
        parser.error("--address belongs to --sweep")
    return args


def main(argv=None):
    """Run the command line; returns the exit status."""
    args, ranks = parse_args(argv), None
    if args.sweep:
        from evonorm_plugins.classification.sweep import main as sweep

        return sweep(args.sweep, args.overrides, resume=args.resume, address=args.address)
    try:
        config = load_config(args.config, args.overrides)
        torch.backends.cudnn.benchmark = True
        ranks = Ranks(config.device, config.timeout_minutes)
        result = train(config, resume=args.resume, ranks=ranks)
    except (InputError, FileNotFoundError) as error:
        _say(ranks, f"error: {error}")
        return 2
    except NonFiniteError as error:
        _say(ranks, f"error: {error}. {config.output_dir}/result.json has what was reached")
        return 1
    except RunError as error:
        _say(ranks, f"error: {error}")
        return 1
    except RuntimeError as error:
        if ranks is None or ranks.size == 1 or not ranks.is_lost(error):
            raise
        _say(ranks, f"error: another rank is gone: {' '.join(str(error).split())[:200]}")
        # The process group cannot be taken down with a rank missing.
        sys.stderr.flush()
        os._exit(1)
    ranks.close()
    if result["status"] == "stopped":
        _say(ranks, f"stopped at step {result['step']}; --resume goes on", main_alone=True)
        return 1
    _say(ranks, f"done: val accuracy {result['val_accuracy']:.4f}", main_alone=True)
    return 0


def _say(ranks, text, *, main_alone=False):
    rank = int(os.environ.get("RANK", 0)) if ranks is None else ranks.rank
    if rank and main_alone:
        return
    where = f"rank {rank}: " if ranks and ranks.size > 1 and not main_alone else ""
    print(f"{where}{text}", file=sys.stderr, flush=True)
