"""Layer graphs from formulas, as :mod:`evonorm_plugins.layers.graph.formula` prints them; no torch.

``x``, ``0``, ``1``, ``v0``, ``v1``; ``+ - * /``; ``max(a, b)``; functions and aggregations of one
value, ``std_{b,w,h}(x)``; names for what is used several times, ``z * sigmoid(z), z = tanh(x)``.
"""

import ast
import re

from evonorm_plugins.errors import GraphError
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.operations import AGGREGATIONS, INITIAL, OPERATIONS

_CONSTANTS = {0: "zero", 1: ("exp", "zero")}
_BINARY = {ast.Add: "add", ast.Mult: "mul", ast.Div: "div"}
_INITIAL = [name for name in INITIAL if name != "zero"]
_CALLED = [op for op in OPERATIONS if op not in ("add", "mul", "div", "neg", *AGGREGATIONS)]
# An index set behind a name, and how it is written in a name of Python's.
_SUBSCRIPT = re.compile(r"(?<=[A-Za-z])_\{([^{}]*)\}(?!\w)")
_WRITTEN = re.compile(r"(\w+)__(\d+)_")


def parse(formula):
    """The :class:`Graph` of a formula.

    Raises:
        GraphError: names the part that is no formula and what is known.
    """
    whole, *definitions = re.split(r",\s*(\w+)\s*=(?!=)", formula)
    names = definitions[::2]
    for name in names:
        if name in INITIAL or name in OPERATIONS or names.count(name) > 1:
            raise GraphError(f"{name!r} cannot be given a meaning: it has one")
    trees = dict(zip(names, map(_tree, definitions[1::2]), strict=True))
    try:
        expression = _Reader(trees).read(_tree(whole))
        # A graph has one operation at least.
        return Graph.of(("add", expression, "zero") if expression in INITIAL else expression)
    except RecursionError:
        raise GraphError(f"the formula of {len(formula)} letters is nested too deeply") from None


def _tree(text):
    sets, text = [], text.strip()
    if "__" in text:  # what an index set is written as, below
        raise GraphError(f"cannot read the formula {text!r}: it has two underscores in a row")

    def subscript(match):
        sets.append(match[1].replace(" ", ""))
        return f"__{len(sets) - 1}_"

    try:
        tree = ast.parse(_SUBSCRIPT.sub(subscript, text), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise GraphError(f"cannot read the formula {text!r}: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and (found := _WRITTEN.fullmatch(node.id)):
            node.id = f"{found[1]}_{{{sets[int(found[2])]}}}"
    return tree


class _Reader:
    """From Python's syntax trees to the nested tuples that :meth:`Graph.of` takes."""

    def __init__(self, trees):
        self.trees, self.found = trees, {}

    def read(self, tree):
        match tree:
            case ast.Constant(value=int() as value) if value in _CONSTANTS and value is not True:
                return _CONSTANTS[value]
            case ast.Name(id=name):
                return self.named(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return ("neg", self.read(operand))
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return ("add", self.read(left), ("neg", self.read(right)))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return (_BINARY[type(op)], self.read(left), self.read(right))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self.called(name, args)
        raise GraphError(
            f"{ast.unparse(tree)!r} is not part of a formula: it is made of x, v0, v1, 0, 1, "
            f"+ - * / and {', '.join(_CALLED)}"
        )

    def named(self, name):
        if name in _INITIAL:
            return name
        if name not in self.trees:
            defined = [*_INITIAL, *self.trees]
            raise GraphError(f"unknown name {name!r}; there are {', '.join(defined)}, 0 and 1")
        if name not in self.found:
            self.found[name] = None
            self.found[name] = self.read(self.trees[name])
        if self.found[name] is None:
            raise GraphError(f"{name!r} is defined by itself, which would make a cycle")
        return self.found[name]

    def called(self, name, args):
        if name not in _CALLED and name not in AGGREGATIONS:
            raise GraphError(
                f"unknown function {name!r}; there are {', '.join([*_CALLED, *AGGREGATIONS])}"
            )
        if len(args) != OPERATIONS[name]:
            raise GraphError(f"{name} takes {OPERATIONS[name]} values, got {len(args)}")
        return (name, *map(self.read, args))
