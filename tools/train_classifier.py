#!/usr/bin/env python
"""Train an image classifier with any norm-activation layer; see docs/classification.md."""

import sys

from evonorm_plugins.cli.classify import main

if __name__ == "__main__":
    sys.exit(main())
