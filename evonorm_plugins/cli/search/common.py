"""What several commands of the search share."""

import sys

from evonorm_plugins.errors import ConfigError, GraphError


def add_config(parser):
    parser.add_argument("--config", required=True, metavar="NAME", help="a search's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options over the file's")


def add_layer_output(parser):
    """Where a layer file is written; see :func:`check_layer_output`."""
    parser.add_argument("out", metavar="LAYER.json")
    parser.add_argument("--force", action="store_true", help="replace a file of another kind")


def check_layer_output(args, inputs=()):
    from evonorm_plugins.files import check_output

    check_output(args.out, name="LAYER.json", inputs=inputs, force=args.force, ours=is_layer)


def is_layer(path):
    """Whether a file holds a layer graph."""
    from evonorm_plugins.layers.graph.graph import Graph

    try:
        Graph.load(path)
    except GraphError:
        return False
    return True


def say_written(path, graph):
    print(f"{path}: {graph}; NORM: {path} in a config", file=sys.stderr)


def find_candidate(store, number):
    """A candidate by its number. Raises :class:`ConfigError` where there is none."""
    try:
        return store[number]
    except KeyError as error:
        raise ConfigError(error.args[0]) from None
