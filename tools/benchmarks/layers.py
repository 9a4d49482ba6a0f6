"""The command ``layers``: the same as ``evonorm bench``."""

from evonorm_plugins.cli.bench import EXAMPLES, __doc__, add_arguments, run

__all__ = ["EXAMPLES", "__doc__", "add_arguments", "run"]
