"""Activations that are written out: ``x * sigmoid(x)``, ``x * relu6(x + 3) / 6`` and their kin."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from evonorm_plugins.convert import kinds
from evonorm_plugins.convert.tracing import FlowTracer, trace

_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_GATE_NAMES = ("sigmoid", "hardsigmoid", "tanh", "softplus", "relu6", "clamp", "clip", "erf")
_GATES = {
    *(
        getattr(namespace, n)
        for namespace in (F, torch)
        for n in _GATE_NAMES
        if hasattr(namespace, n)
    ),
    *_GATE_NAMES,
    *(f"{n}_" for n in _GATE_NAMES),
}
_GATE_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Softplus, nn.ReLU6, nn.Hardtanh)
_SHIFTS = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.imul, operator.iadd),
    *(torch.add, torch.mul, torch.div, "add", "sub", "mul", "div", "add_", "mul_", "div_"),
}


def gated_input(product, modules):
    """What a product gates with a function of itself alone, or None.

    Args:
        product: a node of a graph.
        modules: path -> module, of what nodes of the graph call.
    """
    if product.target not in _PRODUCTS:
        return None
    factors = [a for a in product.args if isinstance(a, fx.Node)]
    if len(factors) != 2:
        return None
    for x, gate in (factors, factors[::-1]):
        if x is not gate and _is_gate_of(gate, x, modules):
            return x
    return None


def _is_gate_of(node, x, modules):
    gates = 0
    while node is not x:
        inputs = node.all_input_nodes
        if len(inputs) != 1 or len(node.users) > 1:
            return False
        module = modules.get(node.target) if node.op == "call_module" else None
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
    own = not type(module).__module__.startswith("torch.nn.") and "forward" in dir(type(module))
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
        module = modules.get(node.target) if node.op == "call_module" else None
        known = kinds.is_activation_call(node) if module is None else kinds.is_activation(module)
        if known:
            return inputs[0] is x
        if node.target not in _SHIFTS:
            return False
        node = inputs[0]
    return False
