"""Train an image classifier with any norm of evonorm_plugins, in one process or in many."""

import sys

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
"""


def add_arguments(parser):
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE", help="YAML file of configs/, or your own")
    what.add_argument("--sweep", metavar="FILE", help="YAML file of a sweep over options")
    parser.add_argument("--resume", action="store_true", help="go on with the run in output_dir")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster for the sweep; else this machine"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options over the file's")


def main(argv=None):
    """The command line of ``tools/train_classifier.py``; returns the exit status."""
    from evonorm_plugins.cli.command import main

    return main(sys.modules[__name__], "tools/train_classifier.py", argv)


def run(args):
    """Train what the arguments say; returns the exit status."""
    from evonorm_plugins.errors import ConfigError

    if args.sweep:
        from evonorm_plugins.classification import sweep

        return sweep.main(args.sweep, args.overrides, resume=args.resume, address=args.address)
    if args.address:
        raise ConfigError("--address belongs to --sweep")
    return _train(args)


def _train(args):
    import torch

    from evonorm_plugins.classification.config import load_config
    from evonorm_plugins.classification.run import train
    from evonorm_plugins.errors import NonFiniteError
    from evonorm_plugins.training.memory import keep_freed_memory
    from evonorm_plugins.training.ranks import Ranks

    config = load_config(args.config, args.overrides)
    torch.backends.cudnn.benchmark = True
    with Ranks(config.device, config.timeout_minutes) as ranks:
        if ranks.device.type == "cpu":
            keep_freed_memory()
        try:
            result = train(config, resume=args.resume, ranks=ranks)
        except NonFiniteError as error:
            result = f"{config.output_dir}/result.json has what was reached"
            raise NonFiniteError(f"{error}. {result}") from None
        stopped = result["status"] == "stopped"
        if ranks.is_main and stopped:
            _say(f"stopped at step {result['step']}; --resume goes on")
        elif ranks.is_main:
            _say(f"done: val accuracy {result['val_accuracy']:.4f}")
    return 1 if stopped else 0


def _say(text):
    print(text, file=sys.stderr, flush=True)
