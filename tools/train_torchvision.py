#!/usr/bin/env python
"""Train a detector of torchvision: the same as ``evonorm detect train``."""

import sys

from evonorm_plugins import command
from evonorm_plugins.cli.detect import train


def main(argv=None):
    return command.main(train, "tools/train_torchvision.py", argv)


if __name__ == "__main__":
    sys.exit(main())
