"""Layer graphs as norms of Detectron2, by the paths of their files."""

import copy

import pytest
import torch
from detectron2.engine.hooks import PreciseBN
from detectron2.modeling import build_model
from detectron2.modeling.backbone import resnet
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage
from torch import nn

from evonorm_plugins import NormAct, get_norm_act
from evonorm_plugins.errors import CheckpointError
from evonorm_plugins.integrations.detectron2 import census, norms_of
from evonorm_plugins.integrations.detectron2.checkpoint import check_norms
from evonorm_plugins.integrations.detectron2.norms import checked_norm
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.layers.graph.module import GraphNormAct

# Every operation that counts, statistics of what is not the input, a mean among them.
BUSY = Graph.of(
    (
        "add",
        ("div", ("exp", ("tanh", "x")), ("std_{b,w,h}", ("mul", "v1", "x"))),
        (
            "mul",
            ("div", ("log", "x"), ("sqrt", ("neg", "x"))),
            ("max", ("mean_{b,w,h}", ("sigmoid", "x")), ("rms_{b,w,h}", ("square", "x"))),
        ),
    )
)


@pytest.fixture
def path(tmp_path):
    def path(graph, name="layer"):
        graph.save(tmp_path / f"{name}.json")
        return f"{tmp_path}/{name}.json"

    return path


@pytest.mark.parametrize("name", ["EvoNormB0", "EvoNormS0"])
def test_detector(name, path, small_cfg, train_batch):
    """The same model and losses as with the norm of which the graph is; stock builders."""
    models = [build_model(small_cfg(norm)) for norm in (name, path(KNOWN[name]) + "(eps=1e-5)")]
    kinds = {type(m) for m in models[1].modules() if isinstance(m, NormAct)}
    assert kinds == {GraphNormAct}
    names = {"v": "v1", "running_var": "running_var4"}
    state = {}
    for key, value in models[0].state_dict().items():
        module, _, leaf = key.rpartition(".")
        owner = models[0].get_submodule(module)
        if isinstance(owner, NormAct) and not owner.apply_act and leaf == "running_var":
            continue  # an affine transform needs none
        renamed = names.get(leaf, leaf) if isinstance(owner, NormAct) else leaf
        state[f"{module}.{renamed}" if module else renamed] = value
    models[1].load_state_dict(state, strict=True)
    losses = []
    for model in models:
        torch.manual_seed(0)
        with EventStorage():
            losses.append(model(train_batch(images=2)))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


def test_where_no_activation_follows(path):
    block = resnet.BottleneckBlock(64, 64, bottleneck_channels=16, norm=path(KNOWN["EvoNormB0"]))
    acts = [block.conv1.norm, block.conv2.norm, block.conv3.norm]
    assert [m.apply_act for m in acts] == [True, True, False]
    block.freeze()
    assert [m.frozen for m in acts] == [True] * 3
    assert not acts[0].uses_batch()


def test_unknown(path, tmp_path):
    assert checked_norm(path(BUSY))
    with pytest.raises(ValueError, match=r"unknown NORM 'layer'; .*paths of layer graphs"):
        checked_norm("layer")
    with pytest.raises(ValueError, match="cannot read the layer graph"):
        resnet.BasicBlock(8, 8, norm="none.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json: not a layer graph: it needs"):
        resnet.BasicBlock(8, 8, norm=f"{tmp_path}/other.json")


def test_census_and_checkpoint(path):
    """A checkpoint of another graph is refused, though its keys are the same."""
    b1, b2 = (nn.Sequential(get_norm_act(path(KNOWN[n], n), 8)) for n in ("EvoNormB1", "EvoNormB2"))
    digest = KNOWN["EvoNormB1"].digest()[:12]
    assert norms_of(b1) == {"0": f"GraphNormAct({digest}, groups=8)"}
    assert digest in census(b1)
    checkpoint = {"model": b1.state_dict()}
    check_norms(b1, checkpoint)
    assert list(b1.state_dict()) == list(b2.state_dict())
    with pytest.raises(CheckpointError, match=digest):
        check_norms(b2, checkpoint)


def test_precise_statistics(path):
    """Those of everything the nodes see in batches of different sizes."""
    torch.manual_seed(0)
    layer = get_norm_act(path(BUSY), 6)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), layer)
    batches = [
        torch.randn(n, 3, h, w) * (k + 1) + k for k, (n, h, w) in enumerate(((3, 9, 8), (1, 5, 4)))
    ]
    x = torch.cat([model[0](b).transpose(0, 1).flatten(1) for b in batches], 1).double().detach()
    expected = {
        "mean": x.sigmoid().mean(1),
        "std": x.var(1, correction=0),
        "rms": x.square().square().mean(1),
    }
    PreciseBN(0, model, batches, len(batches)).update_stats()
    assert sorted(layer.moving_statistics().values()) == sorted(expected)
    for name, kind in layer.moving_statistics().items():
        torch.testing.assert_close(
            layer.get_buffer(name).double(), expected[kind], rtol=1e-4, atol=0
        )
    before = copy.deepcopy(dict(layer.named_buffers()))
    layer(batches[0].new_zeros(1, 6, 2, 2))  # no longer observed
    assert any(not torch.equal(before[k], b) for k, b in layer.named_buffers())


@pytest.mark.parametrize("training", [True, False])
def test_flops(training, path):
    """Every operation of every graph is one that is counted or costs nothing."""
    for k, graph in enumerate([BUSY, *KNOWN.values()]):
        layer = get_norm_act(path(graph, str(k)), 8).train(training)
        counted = FlopCountAnalysis(nn.Sequential(layer), torch.randn(2, 8, 4, 5))
        assert counted.total() >= 2 * 2 * 8 * 4 * 5, graph
        assert not counted.unsupported_ops(), graph
