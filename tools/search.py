#!/usr/bin/env python
"""Search for norm-activation layers, as `evonorm search`; see docs/search.md."""

import sys

from evonorm_plugins.cli import search
from evonorm_plugins.command import main

if __name__ == "__main__":
    sys.exit(main(search, "tools/search.py"))
