"""A generator whose norms are a layer graph, by the path of its file."""

import pytest
import torch

from biggan.generator import Generator, running_statistics_layers
from biggan.sampling import with_standing_statistics
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.layers import moving_statistics_of
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.layers.graph.module import GraphNormAct, SyncGraphNormAct
from evonorm_plugins.registry import registered_name
from evonorm_plugins.training.ema import EMA

Z, Y = torch.linspace(-2, 2, 32).view(4, 8), torch.tensor([0, 1, 2, 0])


@pytest.fixture
def path(tmp_path):
    KNOWN["BN-ReLU"].save(tmp_path / "layer.json")
    return f"{tmp_path}/layer.json"


def generate(config, **options):
    torch.manual_seed(1)
    generator = Generator(config)
    generator(Z, Y).square().sum().backward(**options)
    return generator


def test_same_as_the_layer_of_which_the_graph_is(path, tiny):
    KNOWN["EvoNormB0"].save(path)
    one, other = generate(tiny(norm="EvoNormB0")), generate(tiny(norm=path))
    norms = running_statistics_layers(other)
    assert {type(m) for m in norms} == {SyncGraphNormAct}
    for a, b in zip(running_statistics_layers(one), norms, strict=True):
        torch.testing.assert_close(b.running_var4, a.running_var)
        torch.testing.assert_close(b.v1.grad, a.v.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.conv.weight.grad, one.conv.weight.grad, rtol=1e-3, atol=1e-4)


def test_activation_checkpointing_counts_a_batch_once(path, tiny):
    plain, twice = (
        generate(tiny(norm=path, activation_checkpointing=value)) for value in (False, True)
    )
    torch.testing.assert_close(dict(twice.named_buffers()), dict(plain.named_buffers()))
    assert len(running_statistics_layers(plain)) == 13
    assert all((m.running_mean4 != 0).any() for m in running_statistics_layers(plain))


def test_average_over_steps(path, tiny):
    """Moving statistics are averaged as the weights are, not copied."""
    generator = Generator(tiny(norm=path))
    ema = EMA(generator, 0.75, moving_statistics_of)
    layer = generator.norm
    with torch.no_grad():
        layer.running_mean4.fill_(4)
        layer.running_var7.fill_(5)
    ema.update(1)
    torch.testing.assert_close(ema.module.norm.running_mean4, torch.ones_like(layer.running_mean4))
    torch.testing.assert_close(ema.module.norm.running_var7, torch.full_like(layer.running_var7, 2))


def test_standing_statistics(path, tiny):
    generator = Generator(tiny(norm=path)).eval()
    standing = with_standing_statistics(generator, 2, batch_size=4)
    assert all((m.running_mean4 == 0).all() for m in running_statistics_layers(generator))
    for layer in running_statistics_layers(standing):
        assert (layer.running_mean4 != 0).any()
        assert (layer.running_var7 != 1).all()
        assert layer.momentum == 0.1


def test_refused(path, tiny, tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"other\.json: not a layer graph: it needs"):
        tiny(norm=f"{tmp_path}/other.json")
    with pytest.raises(ConfigError, match=r"norm='none\.json': cannot read the layer graph none"):
        tiny(norm="none.json")
    with pytest.raises(ConfigError, match="grupos"):
        tiny(norm=f"{path}(grupos=4)")
    Graph.of(("add", "x", "v0")).save(path)
    assert tiny(norm=f"{path}(groups=4)").norm.endswith("(groups=4)")


@pytest.mark.parametrize("name", ["Candidate-B2", "candidate_s1(groups=4)"])
def test_a_candidate_by_its_name(name, tiny, path):
    """The same as the file of its graph."""
    registered = registered_name(name.partition("(")[0])
    KNOWN[registered].save(path)
    one, other = (generate(tiny(norm=n)) for n in (name, f"{path}{name[len(registered) :]}"))
    assert any(isinstance(m, GraphNormAct) for m in one.modules())
    torch.testing.assert_close(one.conv.weight.grad, other.conv.weight.grad)
