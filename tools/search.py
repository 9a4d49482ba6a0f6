#!/usr/bin/env python
"""Search for norm-activation layers; see docs/search.md."""

import sys

from evonorm_plugins.cli.search import main

if __name__ == "__main__":
    sys.exit(main())
