"""``python -m evonorm_plugins.convert``: the command line."""

import sys

from evonorm_plugins.convert.cli import main

sys.exit(main())
