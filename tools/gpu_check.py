#!/usr/bin/env python
"""Check kernels, layers and models on a CUDA GPU; see docs/performance.md."""

import sys

import gpu

from evonorm_plugins.command import main

if __name__ == "__main__":
    sys.exit(main(gpu, "tools/gpu_check.py"))
