"""``python -m evonorm_plugins.cli``: the command ``evonorm``, as torchrun starts it."""

import sys

from evonorm_plugins.cli import main

sys.exit(main())
