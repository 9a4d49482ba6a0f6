"""The layer graph that a text names."""

from evonorm_plugins.errors import GraphError
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN, REJECTED
from evonorm_plugins.layers.graph.parse import parse
from evonorm_plugins.registry import registered_name


def find_layer(text):
    """The graph of a formula, of a layer file (``.json``) or of a layer of the paper by its name.

    Raises:
        GraphError: it is none of these; says why, and which names there are.
    """
    known = {**KNOWN, **REJECTED}
    name = text if text in known else registered_name(text)
    if name in known:
        return known[name]
    if text.endswith(".json"):
        return Graph.load(text)
    try:
        return parse(text)
    except GraphError as error:
        raise GraphError(
            f"{error} (a layer is a formula, a .json file or one of {', '.join(known)})"
        ) from None
