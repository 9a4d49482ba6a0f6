"""How a command is parsed and run; the same for all of them.

A command is a module with a docstring, ``EXAMPLES``, ``add_arguments(parser)`` and ``run(args)``,
which returns the exit status or None. A group of commands is a package with a docstring,
``EXAMPLES`` and ``COMMANDS``, a summary for each of its modules. Neither imports torch before
``run``.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from evonorm_plugins import __version__
from evonorm_plugins.errors import run_command

EXIT_STATUS = "\nexit status: 0 done, 1 failed or stopped, 2 bad input\n"


def main(module: ModuleType, prog: str, argv: Sequence | None = None) -> int:
    """Run a command, or the one of a group that the arguments name; returns the exit status.

    Args:
        module: of the command or the group.
        prog: what the user typed to get here.
        argv: the arguments; those of the process if None.
    """
    argv = sys.argv[1:] if argv is None else [str(a) for a in argv]
    prog, argv, module = _chosen(module, prog, argv)
    args = parse_args(module, prog, argv)
    args.command_line = [*prog.split(), *argv]
    return run_command(lambda: module.run(args))


def parse_args(module: ModuleType, prog: str, argv: list[str]) -> argparse.Namespace:
    """The arguments of a command; ``key=value`` may stand before, between and after options."""
    parser = _parser(module, prog)
    if hasattr(module, "COMMANDS"):
        if prog.count(" ") == 0:
            parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
        commands = parser.add_subparsers(metavar="COMMAND", required=True)
        for name, summary in module.COMMANDS.items():
            commands.add_parser(name, help=summary)
        return parser.parse_args(argv)
    module.add_arguments(parser)
    args, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in args or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def seed_list(text: str) -> list[int]:
    """``0,1,2`` as different integers of at least 0, for argparse."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different seeds like 0,1,2")
    return seeds


def _chosen(module: ModuleType, prog: str, argv: list[str]) -> tuple[str, list[str], ModuleType]:
    while argv and argv[0] in getattr(module, "COMMANDS", ()):
        prog, name, argv = f"{prog} {argv[0]}", argv[0], argv[1:]
        module = importlib.import_module(f"{module.__name__}.{name}")
    return prog, argv, module


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A mistake is one line, whoever finds it; the usage of many options is not."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser(module: ModuleType, prog: str) -> _Parser:
    return _Parser(
        prog=prog,
        description=module.__doc__,
        epilog=module.EXAMPLES + EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
