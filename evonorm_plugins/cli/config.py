"""Say which implementation computes on which device of this machine, and why."""

EXAMPLES = """
examples:
  evonorm config
  evonorm config --json
"""


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="the same as JSON, with versions")


def run(args):
    import json

    from evonorm_plugins import show_config
    from evonorm_plugins.metrics.protocol import versions

    if args.json:
        print(json.dumps({"config": show_config().splitlines(), "versions": versions("gan")}))
    else:
        print(show_config())
