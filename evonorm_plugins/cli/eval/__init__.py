"""The scores of the paper's Tables 4 and 5, with the protocol beside them.

Results go to stdout as a table (``--json``: as JSON) and with ``--out`` to a file; progress and
warnings go to stderr.
"""

import argparse
import importlib
import sys

COMMANDS = {
    "ap": "AP and AR of detections, as pycocotools",
    "gan": "Inception score, FID, KID, precision and recall of generated images",
    "stats": "statistics of real images, computed once and kept",
    "table": "the paper's table from the JSON of several runs",
}
EXAMPLES = """
examples:
  evonorm-eval ap --gt instances_val.json --dt detections.json
  evonorm-eval stats --real imagenet-train.zip --out ref_stats.npz
  evonorm-eval gan --fake samples/ --real ref_stats.npz --out runs/a/metrics.json
  evonorm-eval table runs/*/metrics.json
  evonorm-eval gan --help

exit status: 0 done, 1 failed, 2 bad input
"""


def main(argv=None):
    """Run a command; returns the exit status."""
    from evonorm_plugins.errors import InputError

    argv = sys.argv[1:] if argv is None else [str(a) for a in argv]
    args = _parse(argv)
    args.command_line = ["evonorm-eval", *argv]
    module = importlib.import_module(f"{__name__}.{args.command}")
    try:
        return module.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(
            f"error: {error}; what the scores need is installed by: "
            'pip install "evonorm-plugins[metrics]"',
            file=sys.stderr,
        )
        return 2
    except (OSError, MemoryError, RuntimeError) as error:
        # A full disk, a GPU without memory, a lost process: no fault of the input or of this code.
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 1


def _parse(argv):
    parser = argparse.ArgumentParser(
        prog="evonorm-eval",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"{__name__}.{name}")
        sub = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(sub)
    return parser.parse_args(argv)
