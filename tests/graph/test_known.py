"""The nodes of the paper's layers as graphs against the modules of :mod:`evonorm_plugins.layers`.

Those of Appendix B that are no modules: see test_candidates.py.
"""

import itertools

import pytest
import torch

from evonorm_plugins import get_norm_act
from evonorm_plugins.layers.candidates import UNNAMED
from evonorm_plugins.layers.graph.known import COMBINED, KNOWN, REJECTED
from evonorm_plugins.layers.graph.module import GraphNormAct
from evonorm_plugins.search.filters import trial
from evonorm_plugins.search.mutation import NODES

CHANNELS, MOMENTUM = 8, 0.3
WITH_GROUPS = ("EvoNormS", "GN-")
WITH_BATCH = ("EvoNormB", "BN-", "RS + rej", "Candidate-B")


def pair(name, device):
    """A module and the layer of its graph with the same parameters and moving statistics.

    Also ``{module's parameter: graph's}``.
    """
    options = {"dtype": torch.float64, "eps": 1e-3}
    options |= {"groups": 4} if name.startswith(WITH_GROUPS) else {}
    options |= {"momentum": MOMENTUM} if name.startswith(WITH_BATCH) else {}
    module = get_norm_act(name, CHANNELS, **options).to(device)
    layer = GraphNormAct(CHANNELS, graph=KNOWN[name], impl="torch", **options).to(device)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p), alpha=0.5)
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    if hasattr(module, "norm"):
        same = {"norm.weight": "v1", "norm.bias": "v0"}
    else:
        same = {"weight": "weight", "bias": "bias", **({} if module.v is None else {"v": "v1"})}
    state = module.state_dict()
    chosen = {ours: state[theirs] for theirs, ours in same.items()}
    for name, _ in layer.moving_statistics().items():
        kind = "running_mean" if name.startswith("running_mean") else "running_var"
        kind = "running_var" if name.startswith("running_mean_square") else kind
        chosen[name] = next(v for k, v in state.items() if k.endswith(kind))
    layer.load_state_dict({**layer.state_dict(), **chosen})
    return module, layer, same


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [n for n in KNOWN if n not in (*COMBINED, *UNNAMED)])
def test_equals_the_module(name, training, device):
    """Output and every gradient, to 1e-12; x has zeros, where the ReLUs have their kink."""
    module, layer, same = (m for m in pair(name, device))
    x = torch.randn(3, CHANNELS, 5, 7, dtype=torch.float64, device=device) * 2 + 0.5
    x[:, :, 0, :3] = 0
    dy = torch.randn_like(x)
    results = []
    for m, names in ((module, same.keys()), (layer, same.values())):
        m.train(training)
        own = x.clone().requires_grad_()
        y = m(own)
        inputs = [own, *(m.get_parameter(n) for n in names)]
        results.append([y, *torch.autograd.grad(y, inputs, dy)])
    for expected, actual in zip(*results, strict=True):
        scale = max(1, expected.abs().max().item())
        assert (actual - expected).abs().max().item() <= 1e-12 * scale
    moving = {k: v for k, v in module.named_buffers() if v.is_floating_point()}
    for name in layer.moving_statistics():
        kind = "running_mean" if name == "running_mean4" else "running_var"
        expected = next(v for k, v in moving.items() if k.endswith(kind))
        if training and hasattr(module, "norm") and kind == "running_var":
            # torch's moving variance takes in the unbiased one, n/(n-1) of ours.
            n = x.numel() // CHANNELS
            biased = x.var((0, 2, 3), correction=0)
            expected = expected - MOMENTUM * biased * (n / (n - 1) - 1)
        torch.testing.assert_close(layer.get_buffer(name), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", COMBINED)
def test_equals_the_module_whose_parameters_it_combines(name, training, device):
    """Output, and gradients of x, gamma, beta and v, to 1e-12."""
    options = {"dtype": torch.float64, "eps": 1e-3}
    options |= {"groups": 4} if name.startswith(WITH_GROUPS) else {}
    module = get_norm_act(name, CHANNELS, **options).to(device).train(training)
    graph = {"graph": KNOWN[name], "impl": "torch"}
    layer = GraphNormAct(CHANNELS, **graph, **options).to(device).train(training)
    for start in (True, False):
        with torch.no_grad():
            own = [p if start else p + torch.rand_like(p) for p in module.parameters()]
            for p, value in zip(module.parameters(), own, strict=True):
                p.copy_(value)
        named = dict(module.named_parameters())
        gamma, beta = (
            next(p for k, p in named.items() if k.endswith(e)) for e in ("weight", "bias")
        )
        values = COMBINED[name](gamma, beta, named["v"])
        if start:  # a graph's parameters start so
            assert all(torch.equal(values[k], layer.get_parameter(k)) for k in values)
        x = (
            torch.randn(3, CHANNELS, 5, 7, dtype=torch.float64, device=device) * 2
        ).requires_grad_()
        dy = torch.randn_like(x)
        outputs = module(x), torch.func.functional_call(layer, values, (x,))
        inputs = [x, gamma, beta, named["v"]]
        results = [[y, *torch.autograd.grad(y, inputs, dy)] for y in outputs]
        for expected, actual in zip(*results, strict=True):
            scale = max(1, expected.abs().max().item())
            assert (actual - expected).abs().max().item() <= 1e-12 * scale


def test_parameters_and_statistics():
    """Which has which: no more than the module, the affine transform behind it aside."""
    has = {name: set(GraphNormAct(4, graph=g).state_dict()) for name, g in KNOWN.items()}
    norm = {"weight", "bias", "v0", "v1"}
    assert has["EvoNormB0"] == {"weight", "bias", "v1", "running_var4"}
    assert has["EvoNormB1"] == has["EvoNormB2"] == {"weight", "bias", "running_var4"}
    assert has["EvoNormS0"] == {"weight", "bias", "v1"}
    assert has["EvoNormS1"] == has["EvoNormS2"] == has["Random"] == {"weight", "bias"}
    assert has["BN-ReLU"] == {*norm, "running_mean4", "running_var7"}
    assert has["GN-ReLU"] == has["LN-ReLU"] == norm
    assert has["RS + rej"] == {"weight", "bias", "running_mean_square5"}


@pytest.mark.parametrize("name", KNOWN)
def test_is_in_reach_of_the_search(name):
    """At most 10 operations; the S series and the group norms do without the batch."""
    graph = KNOWN[name]
    assert graph.pruned() == graph
    assert len(graph.nodes) <= NODES
    assert graph.depends_on_x()
    # The paper's random sample of the space is the same at every position.
    assert trial(graph) == ("flat" if name == "Random" else None)
    graph.check_space("B" if name.startswith(WITH_BATCH) else "S")


def test_all_different():
    """Swish's own v goes into the affine transform, so the graph is that of Swish-1."""
    graphs = {k: g for k, g in KNOWN.items() if k not in ("BN-Swish", "GN-Swish")} | REJECTED
    for one, other in itertools.combinations(graphs.values(), 2):
        assert one.digest() != other.digest()
    for kind in ("BN", "GN"):
        assert KNOWN[f"{kind}-Swish"].digest() == KNOWN[f"{kind}-Swish-1"].digest()


def test_rejected(device):
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, device=device)
    unstable = GraphNormAct(4, graph=REJECTED["unstable"], dtype=torch.float64).to(device)
    expected = x.tanh() - x.clamp(min=0).mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(unstable(x), expected)
    assert trial(REJECTED["unstable"]) is None
    zero = GraphNormAct(4, graph=REJECTED["zero"], dtype=torch.float64).to(device)
    assert torch.equal(zero(x), torch.zeros_like(x))
    assert trial(REJECTED["zero"]) == "constant"
