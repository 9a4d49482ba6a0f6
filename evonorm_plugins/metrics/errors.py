"""What the command line reports instead of a traceback."""


class InputError(ValueError):
    """Input that cannot be scored; the message names it and what would be right."""


class MissingDependencyError(InputError):
    """A package of an extra is not installed; the message holds the command."""

    def __init__(self, package, extra="metrics"):
        super().__init__(
            f'{package} is not installed; install it with: pip install "evonorm-plugins[{extra}]"'
        )


class ProtocolError(InputError):
    """Numbers that were measured in different ways were to be compared."""


def first(values, n=5):
    """The first ``n`` of ``values`` for a message, and how many more there are."""
    values = list(values)
    shown = ", ".join(str(value) for value in values[:n])
    return f"{shown} and {len(values) - n} more" if len(values) > n else shown
