"""The same command as ``python -m biggan.sample``."""

from biggan.sample import EXAMPLES, __doc__, add_arguments, run

__all__ = ["EXAMPLES", "__doc__", "add_arguments", "run"]
