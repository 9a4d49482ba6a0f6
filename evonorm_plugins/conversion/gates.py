"""Activations that are written out: ``x * sigmoid(x)``, ``x * relu6(x + 3) / 6`` and their kin."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from evonorm_plugins.conversion import kinds
from evonorm_plugins.conversion.in_place import iadd, imul, isub, itruediv
from evonorm_plugins.conversion.tracing import FlowTracer, trace

_PRODUCTS = {operator.mul, imul, torch.mul, "mul", "mul_"}
GATE_NAMES = ("sigmoid", "hardsigmoid", "tanh", "softplus", "relu6", "clamp", "clip", "erf")
_GATES = {
    *(
        getattr(namespace, n)
        for namespace in (F, torch)
        for n in GATE_NAMES
        if hasattr(namespace, n)
    ),
    *GATE_NAMES,
    *(f"{n}_" for n in GATE_NAMES),
}
_GATE_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softplus, nn.ReLU6, nn.Hardtanh)
_CLAMPS = {F.relu6, torch.clamp, torch.clip, "clamp", "clip", "clamp_"}
_SCALINGS = {
    operator.mul,
    operator.truediv,
    imul,
    itruediv,
    torch.mul,
    torch.div,
    "mul",
    "div",
    "mul_",
    "div_",
}
_SHIFTS = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, imul, iadd, isub, itruediv),
    *(torch.add, torch.mul, torch.div, "add", "sub", "mul", "div", "add_", "mul_", "div_"),
}


def gated_input(node, modules):
    """What an activation that is written out is applied to; None if ``node`` is no such thing.

    Args:
        node: of a graph; the last operation of the activation.
        modules: path -> module, of what nodes of the graph call.
    """
    if _is_scaling(node):
        product = node.all_input_nodes[0]
        return factor(product, modules) if scaled(product, modules) is node else None
    return factor(node, modules) if scaled(node, modules) is node else None


def scaled(product, modules):
    """The division of ``x * relu6(x + 3)`` by 6 where it is its only reader, else the product."""
    reader = next(iter(product.users), None)
    if len(product.users) != 1 or not _is_scaling(reader) or factor(product, modules) is None:
        return product
    called = (_module(n, modules) or n.target for n in product.all_input_nodes)
    clamped = any(c in _CLAMPS or isinstance(c, nn.ReLU6 | nn.Hardtanh) for c in called)
    return reader if clamped else product


def factor(product, modules):
    """What a product multiplies with a function of itself alone; None if it is no such product."""
    if product.target not in _PRODUCTS:
        return None
    factors = [a for a in product.args if isinstance(a, fx.Node)]
    if len(factors) != 2:
        return None
    for x, gate in (factors, factors[::-1]):
        if x is not gate and _is_gate_of(gate, x, modules):
            return x
    return None


def _is_scaling(node):
    return node.target in _SCALINGS and len(node.all_input_nodes) == 1


def _module(node, modules):
    return modules.get(node.target) if node.op == "call_module" else None


def _is_gate_of(node, x, modules):
    gates = 0
    while node is not x:
        inputs = node.all_input_nodes
        if len(inputs) != 1 or len(node.users) > 1:
            return False
        module = _module(node, modules)
        if isinstance(module, _GATE_MODULES) or (module is None and node.target in _GATES):
            gates += 1
        elif module is not None or node.target not in _SHIFTS:
            return False
        node = inputs[0]
    return gates > 0


def find_activations(model):
    """All modules in ``model`` that are activations, those of the user's own classes included.

    Such a module has no parameters, and its forward is an activation function or a gated input,
    with constants added or multiplied.
    """
    return {m for m in model.modules() if kinds.is_activation(m) or _is_own_activation(m)}


def _is_own_activation(module):
    own = not getattr(type(module), "__module__", "").startswith("torch.nn.") and "forward" in dir(
        type(module)
    )
    if not own or any(True for _ in module.parameters()) or kinds.passes(module):
        return False
    if any(isinstance(child, nn.Sequential | nn.ModuleList) for child in module.children()):
        return False
    graph, _ = trace(FlowTracer(), module)
    if graph is None:
        return False
    nodes = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    modules = dict(module.named_modules())
    inputs = [n for n in graph.nodes if n.op == "placeholder" and not n.args]
    if len(inputs) != 1 or not nodes:
        return False
    return _is_activation_of(nodes[-1], inputs[0], modules)


def _is_activation_of(node, x, modules):
    while node is not x:
        if gated_input(node, modules) is x:
            return True
        inputs = node.all_input_nodes
        if len(inputs) != 1:
            return False
        module = _module(node, modules)
        known = kinds.is_activation_call(node) if module is None else kinds.is_activation(module)
        if known:
            return inputs[0] is x
        if node.target not in _SHIFTS:
            return False
        node = inputs[0]
    return False
