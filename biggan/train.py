"""Train BigGAN-deep with any norm of evonorm_plugins, in one process or in many."""

import dataclasses
import os
import sys

from evonorm_plugins import command
from evonorm_plugins.errors import ConfigError, NonFiniteError

EXAMPLES = """
examples:
  ImageNet 128 on 8 GPUs:
    torchrun --nproc_per_node=8 -m biggan.train --config imagenet128_EvoNormS0 data=imagenet/train
  go on after an interruption (or start, if there is nothing yet):
    torchrun --nproc_per_node=8 -m biggan.train --resume --config ... data=...
  three seeds after each other, in OUTPUT_DIR/seed0 ...:
    torchrun --nproc_per_node=8 -m biggan.train --seeds 0,1,2 --config ... data=...
  GN-ReLU with 8, 16 and 32 groups after each other, the paper's sweep:
    torchrun --nproc_per_node=8 -m biggan.train --config imagenet128_GN-ReLU_groups8 \\
        --config imagenet128_GN-ReLU --config imagenet128_GN-ReLU_groups32 data=...
  two machines with 8 GPUs each, on both:
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 \\
        -m biggan.train --config ... data=...
  five minutes on a CPU:
    evonorm gan train --config digits32_EvoNormS0
"""


def add_arguments(parser):
    parser.add_argument(
        "--config",
        required=True,
        action="append",
        metavar="NAME",
        help="of biggan/configs, or a YAML file of your own; given several times: runs after each "
        "other",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in output_dir")
    parser.add_argument(
        "--seeds",
        type=command.seed_list,
        metavar="0,1,2",
        help="runs after each other, a folder each",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options over the file's")


def run(args):
    """Train what the arguments say; returns the exit status."""
    import torch

    from biggan.config import load_config
    from evonorm_plugins.training.memory import keep_freed_memory
    from evonorm_plugins.training.ranks import Ranks
    from evonorm_plugins.training.seeds import check_seed

    configs = [load_config(name, args.overrides) for name in args.config]
    _check_together(configs)
    for seed in args.seeds or ():
        check_seed(seed, "--seeds ")
    torch.backends.cudnn.benchmark = True
    first = configs[0]
    with Ranks(first.device, first.timeout_minutes) as ranks:
        if ranks.device.type == "cpu":
            keep_freed_memory()
        for one in (run for config in configs for run in _runs(config, args.seeds)):
            stopped = train(one, ranks, args.resume)
            if stopped:
                if ranks.is_main:
                    print(f"stopped by {stopped}; --resume goes on", file=sys.stderr, flush=True)
                return 1
    return 0


def train(config, ranks, resume):
    """One run; returns the name of the signal that stopped it, or None."""
    from biggan.run import Run

    run = Run(config, ranks, resume=resume)
    try:
        return run.train()
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}. {_last_checkpoint(run)}") from None


def _check_together(configs):
    """Raise :class:`ConfigError` where runs after each other would share what they cannot."""
    first = configs[0]
    for config in configs:
        for key in ("device", "timeout_minutes"):  # of the processes
            if getattr(config, key) != getattr(first, key):
                raise ConfigError(
                    f"{key}={getattr(config, key)} of one --config, {getattr(first, key)} of "
                    f"another: give {key}=... for all"
                )
    folders = [config.output_dir for config in configs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(
                f"output_dir={folder} is that of several --config: each run needs one of its own"
            )


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


def main(argv=None):
    """The command line ``python -m biggan.train``; returns the exit status."""
    return command.main(sys.modules[__name__], "python -m biggan.train", argv)


if __name__ == "__main__":
    # By its name: as __main__ it may be run by another module's, which is found under that name.
    from biggan.train import main

    sys.exit(main())
