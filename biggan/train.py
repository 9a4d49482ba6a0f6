"""Train BigGAN-deep with any norm of evonorm_plugins, in one process or in many."""

import argparse
import dataclasses
import os
import sys

import torch

from biggan.config import load_config
from biggan.run import Run
from evonorm_plugins.errors import DataError, InputError, NonFiniteError, RunError
from evonorm_plugins.training.ranks import Ranks

EXAMPLES = """
examples:
  ImageNet 128 on 8 GPUs:
    torchrun --nproc_per_node=8 -m biggan.train \\
        --config biggan/configs/imagenet128_EvoNormS0.yaml data=/data/imagenet/train
  go on after an interruption (or start, if there is nothing yet):
    torchrun --nproc_per_node=8 -m biggan.train --resume --config ... data=...
  three seeds after each other, in OUTPUT_DIR/seed0 ...:
    torchrun --nproc_per_node=8 -m biggan.train --seeds 0,1,2 --config ... data=...
  two machines with 8 GPUs each, on both:
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 \\
        -m biggan.train --config ... data=...
  five minutes on a CPU:
    python -m biggan.train --config biggan/configs/digits32_EvoNormS0.yaml

exit status: 0 done, 1 failed or stopped, 2 bad input
"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m biggan.train",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="YAML file of biggan/configs, or your own")
    parser.add_argument("--resume", action="store_true", help="go on with the run in output_dir")
    parser.add_argument(
        "--seeds", type=_seeds, metavar="0,1,2", help="runs after each other, a folder each"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options over the file's")
    return parser.parse_intermixed_args(argv)


def _seeds(text):
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different seeds like 0,1,2")
    return seeds


def main(argv=None):
    args = parse_args(argv)
    ranks = None
    try:
        config = load_config(args.config, args.overrides)
        ranks = Ranks(config.device, config.timeout_minutes)
        for one in _runs(config, args.seeds):
            stopped = train(one, ranks, args.resume)
            if stopped:
                _say(ranks, f"stopped by {stopped}; --resume goes on")
                return 1
    except (InputError, FileNotFoundError) as error:
        _say(ranks, f"error: {error}", everywhere=isinstance(error, DataError))
        return 2
    except RunError as error:
        _say(ranks, f"error: {error}", everywhere=True)
        return 1
    except RuntimeError as error:
        if ranks is None or ranks.size == 1 or not ranks.is_lost(error):
            raise
        _say(ranks, f"error: another rank is gone: {_short(error)}", everywhere=True)
        # The process group cannot be taken down with a rank missing.
        sys.stderr.flush()
        os._exit(1)
    ranks.close()
    return 0


def train(config, ranks, resume):
    """One run; returns the name of the signal that stopped it, or None."""
    torch.backends.cudnn.benchmark = True
    run = Run(config, ranks, resume=resume)
    try:
        return run.train()
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}. {_last_checkpoint(run)}") from None


def _runs(config, seeds):
    if not seeds:
        return [config]
    return [
        dataclasses.replace(
            config, seed=seed, output_dir=os.path.join(config.output_dir, f"seed{seed}")
        )
        for seed in seeds
    ]


def _last_checkpoint(run):
    if not os.path.exists(run.path):
        return "There is no checkpoint yet"
    return f"The last checkpoint, {run.path}, is from before"


def _short(error):
    return " ".join(str(error).split())[:200]


def _say(ranks, text, *, everywhere=False):
    if ranks is None:
        main_rank = int(os.environ.get("RANK", 0)) == 0
        if main_rank:
            print(text, file=sys.stderr)
    elif ranks.is_main or everywhere:
        where = f"rank {ranks.rank}: " if ranks.size > 1 else ""
        print(f"{where}{text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
