"""``python -m evonorm_plugins.metrics``: the command line."""

import sys

from evonorm_plugins.metrics.cli import main

sys.exit(main())
