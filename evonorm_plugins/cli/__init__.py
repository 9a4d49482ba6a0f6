"""EvoNorm layers: train with them, search for them, put them into models, score what comes out."""

import sys

COMMANDS = {
    "eval": "AP of detections; IS, FID, KID of generated images; the paper's tables",
    "detect": "train a detector of torchvision",
    "gan": "train a BigGAN-deep, or draw images with one",
    "classify": "train an image classifier",
    "sweep": "train a classifier with many options",
    "search": "search for layers, and look at what was found",
    "convert": "a model's norms and activations replaced: what became of them",
    "bench": "time and memory of layers on this machine",
    "config": "which implementation runs where on this machine, and why",
}
EXAMPLES = """
examples:
  evonorm classify --config cifar10_resnet50_EvoNormS0 data=train.zip val_data=test.zip
  evonorm gan train --config digits32_EvoNormS0
  evonorm eval ap --gt instances_val.json --dt detections.json
  evonorm convert resnet50 EvoNormS0
  evonorm COMMAND --help
"""


def main(argv=None):
    """The command ``evonorm``; returns the exit status."""
    from evonorm_plugins.command import main

    return main(sys.modules[__name__], "evonorm", argv)
