"""What ends a command without a traceback.

An :class:`InputError` is the user's to mend, exit status 2; a :class:`RunError` is work that could
not be done, exit status 1. A command line catches these two and nothing else of this package.
"""


class InputError(ValueError):
    """Input that cannot be used; the message names it and says what would be right."""


class ConfigError(InputError):
    """A config, an option or a combination of them that makes no sense."""


class DataError(InputError):
    """Images, annotations or a set of them that cannot be used."""


class BrokenImageError(DataError):
    """An image that cannot be read; the message names the file and the reason."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read, or not be used for what was asked."""


class GraphError(InputError):
    """No layer graph, or one that breaks a rule; the message says where."""


class ConvertError(InputError):
    """A model that cannot be converted as was asked."""


class StoreError(InputError):
    """A file that is no search store, or one of another search."""


class ProtocolError(InputError):
    """Numbers that were measured in different ways were to be compared."""


class MissingDependencyError(InputError):
    """A package of an extra is not installed; the message holds the command."""

    def __init__(self, package, extra="metrics"):
        super().__init__(
            f'{package} is not installed; install it with: pip install "evonorm-plugins[{extra}]"'
        )


class RunError(RuntimeError):
    """Work that failed, or was stopped, although the input was right."""


class NoSpaceError(RunError):
    """The disk is full; what was to be replaced is still there."""


class NonFiniteError(RunError, FloatingPointError):
    """A loss or a gradient is NaN or infinite; the weights are those of the step before.

    ``result`` is what the run has reached so far, where it says so.
    """

    result = None


class CollapseError(RunError):
    """The generator has collapsed; what it was before is kept."""


class RayError(RunError):
    """Ray is not installed, cannot start, or does not answer."""


class InterruptedRunError(RunError):
    """A sweep or a search was stopped before its end; what ended so far is saved."""


def first(values, n=5):
    """The first ``n`` of ``values`` for a message, and how many more there are."""
    values = list(values)
    shown = ", ".join(str(value) for value in values[:n])
    return f"{shown} and {len(values) - n} more" if len(values) > n else shown
