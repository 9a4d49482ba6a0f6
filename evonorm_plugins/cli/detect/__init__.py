"""Detectors of torchvision with any norm-activation layer.

Detectron2's have a command line of their own: tools/train_net.py.
"""

COMMANDS = {"train": "train and evaluate a detector of torchvision, from scratch"}
EXAMPLES = """
examples:
  evonorm detect train --train-json train.json --train-images train/ \\
      --val-json val.json --val-images val/
  evonorm detect train --help
"""
