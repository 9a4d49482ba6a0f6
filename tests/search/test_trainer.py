"""The task of a search: options, data, and trainings in parts."""

import dataclasses
import functools
import pickle

import pytest
import torch

from evonorm_plugins import get_norm_act
from evonorm_plugins.classification.models import build_model
from evonorm_plugins.errors import ConfigError, DataError
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.layers.graph.module import GraphNormAct
from evonorm_plugins.search.config import task_from_dict, training_config
from evonorm_plugins.search.data import task_data
from evonorm_plugins.search.trainer import Training
from evonorm_plugins.training.config import to_dict

S0 = KNOWN["EvoNormS0"]


def test_the_papers_task():
    task = task_from_dict({"data": "cifar10.zip"})
    assert task.anchors == ["resnet50_cifar", "mobilenetv2_cifar", "efficientnet_b0_cifar"]
    assert task.filters == ["trial", "stability", "quality"]
    config = training_config(task, "resnet50_cifar", "BN-ReLU")
    assert (config.resolution, config.padding, config.flip) == (24, 0, True)
    assert (config.batch_size, config.val_batch_size, config.val_resolution) == (128, 512, None)
    assert (config.optimizer, config.lr, config.weight_decay) == ("sgd", 0.1, 1e-4)
    assert (config.momentum, config.nesterov) == (0.9, True)
    assert (config.steps, config.schedule) == (2000, "constant")
    assert (config.holdout, config.width, config.warmup) == (5000, None, 0)
    s = training_config(
        task_from_dict({"data": "cifar10.zip", "space": "S"}), "resnet50_cifar", "FRN"
    )
    assert (s.steps, s.schedule) == (5000, "cosine")
    given = {"data": "cifar10.zip", "space": "S", "steps": 300, "val_data": "test.zip"}
    config = training_config(task_from_dict(given), "resnet50_cifar", "FRN")
    assert (config.steps, config.schedule, config.holdout) == (300, "cosine", 0)
    assert (task.quality_steps, task.quality_accuracy) == (100, 0.2)
    assert (task.stability_steps, task.stability_norm) == (100, 1e8)


def test_values_that_can_be_sent(options):
    task = task_from_dict(options(filters=["stability"]))
    assert pickle.loads(pickle.dumps(task)) == task
    assert task_from_dict(to_dict(task)) == task


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"anchor": "resnet50_cifar"}, "did you mean 'anchors'"),
        ({"anchors": ["resnet51_cifar"]}, "anchors: unknown model 'resnet51_cifar'.*did you mean"),
        ({"stability_anchor": "vgg"}, "stability_anchor: unknown model 'vgg'"),
        ({"anchors": ["mini_inception"]}, "anchors: mini_inception has no option 'width'"),
        ({"anchors": []}, "give one model at least"),
        ({"anchors": ["resnet50_cifar"] * 2}, "resnet50_cifar is there twice"),
        ({"anchors": "resnet50_cifar"}, "anchors='resnet50_cifar' is not list of names"),
        ({"filters": ["trial", "cost"]}, "'cost' is not one of .'trial', 'stability', 'quality'"),
        ({"filters": ["trial", "trial"]}, "trial is there twice"),
        ({"steps": 1}, "quality_steps=2 are more than the 1 steps"),
        ({"space": "C"}, "space='C' is not one of B, S"),
        ({"schedule": "multistep"}, "schedule='multistep' is not one of"),
        ({"quality_accuracy": 20}, "quality_accuracy=20.0 is a share"),
        ({"quality_accuracy": float("nan")}, "quality_accuracy=nan must be at least 0"),
        ({"stability_batch": 9}, "stability_batch=9 is more than batch_size=8"),
        ({"stability_norm": 0}, "stability_norm=0.0 must be at least"),
        ({"holdout": -1}, "holdout=-1 must be at least 0"),
        ({"holdout": 0}, "holdout=0 needs val_data"),
        ({"momentum": 1}, "momentum=1.0 must be below 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"data": ""}, "data=''"),
    ],
)
def test_bad_options(options, values, message):
    with pytest.raises(ConfigError, match=message):
        task_from_dict(options(**values))


def test_steps_that_are_not_taken_need_not_fit(options):
    assert task_from_dict(options(steps=1, filters=["trial"])).training_steps == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "nowhere.zip"}, "data=nowhere.zip: there is no such folder or file"),
        ({"val_data": "nowhere.zip"}, "val_data=nowhere.zip: there is no such"),
        ({"holdout": 60}, "holdout=60 leaves none of the 60 images"),
        ({"holdout": 55}, "5 training images are fewer than one update takes: batch_size=8"),
        ({"resolution": 17}, "resolution=17, but the images are 16x16"),
        ({"val_resolution": 17}, "val_resolution=17 is more than .*images.zip has"),
    ],
)
def test_bad_data(options, values, message):
    with pytest.raises(DataError, match=message):
        task_data(task_from_dict(options(**values)))


def test_data_is_read_once(options):
    task = task_from_dict(options())
    data = task_data(task)
    assert task_data(dataclasses.replace(task, anchors=["mobilenetv2_cifar"], lr=1.0)) is data
    assert (len(data.train), data.val_length) == (48, 12)
    counts = sum(torch.bincount(y, minlength=3) for _, y in data.val_batches())
    assert counts.tolist() == [4, 4, 4]
    assert task_data(task_from_dict(options(holdout="20%"))).val_length == 12
    other = task_data(dataclasses.replace(task, seed=1))
    assert not torch.equal(other.train.images, data.train.images)


def test_a_graph_is_a_norm():
    norm = functools.partial(GraphNormAct, graph=S0, groups=4)
    assert get_norm_act(norm, 8, apply_act=False).graph == S0.canonical()
    model = build_model("mobilenetv2_cifar", 10, norm, width=0.1)
    layers = [m for m in model.modules() if isinstance(m, GraphNormAct)]
    # 17 blocks, the first of two convolutions, with a layer before and one after them.
    assert len(layers) == 2 + 2 + 3 * 16
    assert [m.apply_act for m in layers].count(False) == 17
    assert {m.groups for m in layers} == {4}


@pytest.mark.parametrize("space", ["B", "S"])
def test_training_in_parts_is_the_same(options, space):
    """Bit for bit, with a validation and another training between them."""
    task = task_from_dict(options(steps=3, space=space))

    def weights(*parts):
        training = Training(S0, task, "resnet50_cifar")
        for until in parts:
            assert training.go_on(until)
            training.accuracy()
            Training(S0, task, "mobilenetv2_cifar").go_on(1)
        assert training.trainer.step == 3
        return training.trainer.model.state_dict(), training.accuracy()

    at_once, in_parts = weights(3), weights(1, 1, 3)
    assert at_once[1] == in_parts[1]
    for key, value in at_once[0].items():
        assert torch.equal(value, in_parts[0][key]), key


def test_torchs_random_numbers_stay(options):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    training = Training(S0, task_from_dict(options()), "resnet50_cifar")
    training.go_on(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_options_reach_the_layers_and_the_optimizer(options):
    task = task_from_dict(options(eps=1e-3, weight_decay=0.5, momentum=0))
    trainer = Training(S0, task, "resnet50_cifar").trainer
    layer = next(m for m in trainer.model.modules() if isinstance(m, GraphNormAct))
    assert (layer.groups, layer.eps) == (4, 1e-3)
    decayed, others = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0)
    assert not decayed["nesterov"]


def test_what_is_not_finite_ends_a_training(options):
    task = task_from_dict(options(lr=1e30, steps=4))
    training = Training(S0, task, "mobilenetv2_cifar")
    assert not training.go_on(4)
    assert 2 <= training.failed_at <= 4
    assert training.accuracy() == pytest.approx(1 / 3)
    assert not training.go_on(4)
    assert training.trainer.step == training.failed_at - 1
