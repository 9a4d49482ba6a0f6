"""``python -m evonorm_plugins.cli.eval``: the command line, as torchrun starts it."""

import sys

from evonorm_plugins.cli.eval import main

sys.exit(main())
