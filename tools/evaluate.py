#!/usr/bin/env python
"""The same as evonorm-eval: AP of detectors, IS and FID of generators, tables of both."""

import sys

from evonorm_plugins.cli.eval import main

if __name__ == "__main__":
    sys.exit(main())
