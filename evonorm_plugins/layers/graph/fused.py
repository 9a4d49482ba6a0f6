"""Which fused operator computes a layer graph, and what it is given. Needs no torch.

A graph is taken apart by its structure, by what holds for all real numbers: factors in any order, a
quotient by what is at least sqrt(eps) as a product with its inverse, signs, and what is made of v0
and v1 alone: as a factor or a summand of the whole it goes into gamma and beta, as one of x into
the formula's own v. No number is computed to find out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from evonorm_plugins.layers.graph.operations import AGGREGATIONS, INITIAL

_X, _ZERO = INITIAL.index("x"), INITIAL.index("zero")
_ONE = ("exp", _ZERO)
# Factors of a product beyond which it is that of no formula.
_FACTORS = 8
_BATCH = "b,w,h"


@dataclass(frozen=True)
class FusedFormula:
    """A fused operator and its arguments, as numbers of nodes of a canonical graph.

    Steps are ``(("mul", node), ("add", node), ("div", node), ("neg", None), ...)``, the first one
    first, each with a number for every channel.

    Fields:
        kind: of :mod:`evonorm_plugins.series`, or "group": that of
            :func:`evonorm_plugins.functional.group_norm_act`.
        after: steps from the formula to the output of the graph.
        over: index set of a sample's statistics.
        v: steps from 1 to the formula's v; None where it has none.
        statistics, act: of "group".
        before: of "group", steps from the normalized value to what is activated.
        moving: the node over the batch; None where there is none.
        mirrored: the formula is that of -x.
    """

    kind: str
    after: tuple = ()
    over: str = ""
    v: tuple | None = None
    statistics: str = ""
    act: str = ""
    before: tuple = ()
    moving: int | None = None
    mirrored: bool = False

    def __str__(self):
        names = {"rs_rej": "RS + rej", "s2v": "EvoNorm-S2 with v"}
        if self.kind == "group":
            return f"{self.statistics}_{{{self.over}}} and {self.act}"
        return names.get(self.kind) or f"EvoNorm-{self.kind.upper()}"

    def constants(self):
        """Numbers of the nodes that steps name."""
        steps = (*self.after, *self.before, *(self.v or ()))
        return tuple({node for _, node in steps if node is not None})


def fused_formula(graph):
    """The :class:`FusedFormula` of a canonical graph, or None where no kernel knows it."""
    return _Reader(graph).read()


class _Reader:
    def __init__(self, graph):
        self.nodes = graph.nodes
        self.last = len(INITIAL) + len(graph.nodes) - 1
        self.constant = [False, True, True, True]  # whether a node is made of zero, v0, v1 alone
        self.apart = set()  # nodes that are at least sqrt(eps)
        for k, (op, *inputs) in enumerate(self.nodes, len(INITIAL)):
            self.constant.append(all(self.constant[i] for i in inputs))
            if op.startswith(("std", "rms")) or (op == "max" and self.apart & set(inputs)):
                self.apart.add(k)

    def read(self):
        if self.constant[self.last]:
            return None
        core, after = self.affine(self.last)
        found = self.activated(core)
        if found is None:
            steps, above, below = self.factors(core)
            found = self.quotient(sorted(above), below)
            after = steps + after
        return found and replace(found, after=found.after + after)

    # ---- nodes ----

    def node(self, k):
        """``(operation, input, ...)``; of an initial one ``(None,)``."""
        return (None,) if k < len(INITIAL) else self.nodes[k - len(INITIAL)]

    def split(self, k, op):
        """``(what varies, constant)`` of a node of two such inputs, or None."""
        name, *inputs = self.node(k)
        if name != op:
            return None
        a, b = inputs
        if self.constant[a] == self.constant[b]:
            return None
        return (b, a) if self.constant[a] else (a, b)

    def is_divisor(self, k):
        """Whether a node is a constant that a quotient keeps away from zero."""
        return self.constant[k] and k not in self.apart

    def affine(self, k):
        """``(node, steps)``: what is left of a node without signs and constants around it."""
        steps = ()
        while True:
            op, *inputs = self.node(k)
            if op == "neg":
                k, steps = inputs[0], (("neg", None), *steps)
            elif op == "div" and self.is_divisor(inputs[1]):
                k, steps = inputs[0], (("div", inputs[1]), *steps)
            elif op in ("add", "mul") and (parts := self.split(k, op)):
                k, steps = parts[0], ((op, parts[1]), *steps)
            else:
                return k, steps

    def factors(self, k, whole=None):
        """``(steps, above, below)``: a product of constants, and of what else is above and below.

        Args:
            whole: a node that is not taken apart.
        """
        steps, above, below, todo = (), [], [], [k]
        while todo:
            k = todo.pop()
            op, *inputs = self.node(k)
            if self.constant[k]:
                steps += (("mul", k),)
            elif k == whole or len(above) + len(todo) > _FACTORS:
                above.append(k)
            elif op == "neg":
                steps += (("neg", None),)
                todo += inputs
            elif op == "mul":
                todo += inputs
            elif op == "div" and self.is_divisor(inputs[1]):
                steps += (("div", inputs[1]),)
                todo.append(inputs[0])
            elif op == "div" and inputs[1] in self.apart:
                below.append(inputs[1])
                todo.append(inputs[0])
            else:
                above.append(k)
        return steps, above, below

    def multiple(self, k, of):
        """Steps from 1 to a constant, of which node k is the product with ``of``, or None."""
        steps, above, below = self.factors(k, whole=of)
        return steps if above == [of] and not below else None

    def aggregation(self, k):
        """``(moment, index set)`` where a node is one of x, else ``(None, None)``."""
        op, *inputs = self.node(k)
        return AGGREGATIONS[op] if op in AGGREGATIONS and inputs == [_X] else (None, None)

    def gate(self, k, of):
        """Steps from 1 to v, where node k is ``sigmoid(v * of)``, or None."""
        op, *inputs = self.node(k)
        return self.multiple(inputs[0], of) if op == "sigmoid" else None

    def normalized(self, k):
        """Without activation: x, or x - mean, over the statistic of a sample; else None."""
        inner, steps = self.affine(k)
        more, above, below = self.factors(inner)
        if len(above) != 1 or len(below) != 1:
            return None
        moment, over = self.aggregation(below[0])
        if moment is None or over == _BATCH:
            return None
        if above[0] != _X:
            if moment != "std" or not self.is_centred(above[0], over):
                return None
            moment = "norm"
        return FusedFormula("group", over=over, statistics=moment, act="none", before=more + steps)

    def is_centred(self, k, over):
        """Whether a node is ``x - mean(x)`` over an index set."""
        op, *inputs = self.node(k)
        if op != "add" or _X not in inputs:
            return False
        other = self.node(inputs[1 - inputs.index(_X)])
        return other[0] == "neg" and self.aggregation(other[1]) == ("mean", over)

    # ---- formulas ----

    def activated(self, core):
        """Of a normalized value with its own gamma and beta, and an activation."""
        op, *inputs = self.node(core)
        if op == "max" and (parts := self.split(core, "max")):
            z, bound = parts
            act = ("relu", None) if bound == _ZERO else ("tlu", (("mul", bound),))
        elif op == "mul":
            for z, other in (inputs, inputs[::-1]):
                v = self.gate(other, z)
                if v is not None:
                    act = ("swish", v) if v else ("silu", None)
                    break
            else:
                return None
        else:
            return None
        found = self.normalized(z)
        return found and replace(found, act=act[0], v=act[1])

    def quotient(self, above, below):
        """Of factors above and below, constants aside."""
        if len(below) != 1 or not 1 <= len(above) <= 2:
            return None
        moment, over = self.aggregation(below[0])
        if moment is None:
            return self.over_maximum(below[0]) if above == [_X] else None
        if len(above) == 2:
            return self.gated(above, moment, over)
        rectified = self.split(above[0], "max")
        value = above[0]
        if rectified and rectified[1] == _ZERO:
            value = rectified[0]
        act = "none" if value == above[0] else "relu"
        if over == _BATCH:
            if value != _X or act != "relu" or moment != "rms":
                return None
            return FusedFormula("rs_rej", moving=below[0])
        if value != _X:
            if moment != "std" or not self.is_centred(value, over):
                return None
            moment = "norm"
        return FusedFormula("group", over=over, statistics=moment, act=act)

    def gated(self, above, moment, over):
        """x sigmoid(v x) over the statistic of a sample."""
        v = self.gate(above[1], _X) if above[0] == _X else None
        if v is None or over == _BATCH:
            return None
        if v:
            return FusedFormula({"std": "s0", "rms": "s2v"}[moment], over=over, v=v)
        return FusedFormula({"std": "s1", "rms": "s2"}[moment], over=over)

    def over_maximum(self, k):
        """x over the larger one of the deviation of the batch and something else."""
        op, *inputs = self.node(k)
        if op != "max":
            return None
        for moving, other in (inputs, inputs[::-1]):
            if self.aggregation(moving) == ("std", _BATCH):
                return self.sum_below(moving, other) or self.product_below(moving, other)
        return None

    def sum_below(self, moving, k):
        """v x + std: B0. rms - x: B2, and rms + x, which is that of -x."""
        if self.aggregation(k) == ("std", "w,h"):
            return FusedFormula("b0", v=(("mul", _ZERO),), moving=moving)
        op, *inputs = self.node(k)
        if op != "add":
            return None
        for own, other in (inputs, inputs[::-1]):
            moment, over = self.aggregation(own)
            v = self.multiple(other, _X)
            if over != "w,h" or moment == "mean" or v is None:
                continue
            if moment == "std":
                return FusedFormula("b0", v=v, moving=moving)
            if v in ((), (("neg", None),)):
                return self.of_sign("b2", moving, mirrored=not v)
        return None

    def product_below(self, moving, k):
        """(x + 1) rms: B1, and (1 - x) rms, which is that of -x."""
        steps, above, below = self.factors(k)
        if steps or below or len(above) != 2:
            return None
        for own, other in (above, above[::-1]):
            parts = self.split(other, "add")
            if self.aggregation(own) != ("rms", "w,h") or not parts:
                continue
            v = self.multiple(parts[0], _X)
            if self.node(parts[1]) == _ONE and v in ((), (("neg", None),)):
                return self.of_sign("b1", moving, mirrored=bool(v))
        return None

    @staticmethod
    def of_sign(kind, moving, mirrored):
        after = (("neg", None),) if mirrored else ()
        return FusedFormula(kind, after=after, moving=moving, mirrored=mirrored)
