#!/usr/bin/env python
"""Measure EvoNorms against what they replace; see docs/performance.md."""

import sys

import benchmarks

from evonorm_plugins.command import main

if __name__ == "__main__":
    sys.exit(main(benchmarks, "tools/benchmark.py"))
