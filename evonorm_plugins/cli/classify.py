"""Train an image classifier with any norm of evonorm_plugins, in one process or in many."""

import json
import sys

EXAMPLES = """
examples:
  CIFAR-10, the paper's small MobileNetV2, on whatever this machine has:
    evonorm classify --config cifar10_mobilenetv2_EvoNormS0 \\
        data=cifar10-train.zip val_data=cifar10-test.zip
  ImageNet on 8 GPUs:
    torchrun --nproc_per_node=8 -m evonorm_plugins.cli classify \\
        --config imagenet_resnet50_EvoNormS0 data=imagenet/train val_data=imagenet/val
  any model of torchvision or timm, with EvoNorm in place of its norms and activations:
    evonorm classify --config ... model=torchvision:regnet_y_400mf norm=EvoNormS0
  go on after an interruption (or start, if there is nothing yet):
    evonorm classify --resume --config ... data=...
"""


def add_arguments(parser):
    parser.add_argument(
        "--config", required=True, metavar="NAME", help="of configs/, or a YAML file of your own"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in output_dir")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options over the file's")


def main(argv=None):
    """The command line of ``tools/train_classifier.py``; returns the exit status."""
    from evonorm_plugins.command import main

    return main(sys.modules[__name__], "tools/train_classifier.py", argv)


def run(args):
    """Train what the arguments say; returns the exit status."""
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
            if args.json:
                print(json.dumps(result))
            _say(f"done: val accuracy {result['val_accuracy']:.4f}")
    return 1 if stopped else 0


def _say(text):
    print(text, file=sys.stderr, flush=True)
