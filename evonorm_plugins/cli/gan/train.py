"""The same command as ``python -m biggan.train``."""

from biggan.train import EXAMPLES, __doc__, add_arguments, run

__all__ = ["EXAMPLES", "__doc__", "add_arguments", "run"]
