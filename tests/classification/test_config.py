"""Options and the learning rate of every step."""

from pathlib import Path

import pytest
import torch

from evonorm_plugins.classification.config import from_dict, load_config
from evonorm_plugins.classification.models import build_model
from evonorm_plugins.classification.optim import lr_factor, make_optimizer, scaled_lr
from evonorm_plugins.classification.trainer import build_classifier
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.training.config import to_dict


def test_files_overrides_and_back(tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 1e-3\nepochs: 5\nmodel_options: {a: 1}\n")
    (tmp_path / "run.yaml").write_text("_BASE_: base.yaml\nepochs: 7\nmilestones: [2, 4]\n")
    config = load_config(tmp_path / "run.yaml", ["lr=0.5", "width=0.9", "norm=EvoNormS0(groups=8)"])
    assert (config.lr, config.epochs, config.width, config.milestones) == (0.5, 7, 0.9, [2, 4])
    assert config.model_options == {"a": 1}
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "no option 'learning_rat'"),
        ({"epoch": 1}, "did you mean 'epochs'"),
        ({"lr": "fast"}, "lr='fast' is not float"),
        ({"optimizer": "lion"}, "'lion' is not one of sgd, adam"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"holdout": "10%", "val_data": "v"}, "holdout=10% is instead of val_data=v"),
        ({"holdout": -1}, "holdout=-1 must be at least 0"),
        ({"holdout": "0%"}, "holdout='0%' is not a number, or a share of all between 0% and 100%"),
        ({"holdout": "100%"}, "holdout='100%' is not a number, or a share"),
        ({"holdout": "some"}, "holdout='some' is not a number, or a share"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be below 1"),
        ({"epochs": 0}, "trains nothing"),
        ({"momentum": 0}, "nesterov=true needs momentum"),
        ({"schedule": "multistep", "milestones": [3, 2]}, "rising order"),
        ({"norm": "EvoNormS9"}, "did you mean 'EvoNormS2'"),
        ({"precision": "fp16", "device": "cpu"}, "needs a GPU"),
        ({"crop_scale": 2}, "at most 1"),
        ({"model_options": {3: 1}}, "{3: 1}: the name of an option is text"),
        ({"holdout": 5, "val_data": "v"}, "holdout=5 is instead of val_data=v"),
        ({"zoom": 1}, "zoom=1.0 must be below 1"),
        ({"shift": 2}, "shift=2.0 is a share"),
        ({"epochs": 0, "steps": 9, "schedule": "inverse_time"}, "epochs=0 is not possible"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(values)


def _factors(steps, steps_per_epoch, **values):
    config = from_dict(values)
    return [lr_factor(config, s, steps, steps_per_epoch) for s in range(steps)]


def test_schedules_by_hand():
    # 4 epochs of 2 steps.
    multistep = {"schedule": "multistep", "milestones": [1, 3], "decay": 0.5}
    assert _factors(8, 2, **multistep) == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert _factors(4, 1, schedule="polynomial") == [1, 0.75, 0.5, 0.25]
    assert _factors(4, 1, schedule="polynomial", power=2) == [1, 0.5625, 0.25, 0.0625]
    cosine = _factors(4, 1, schedule="cosine")
    assert cosine == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    # Keras' SGD(decay=1e-2 / 60): a fifth after 60 epochs of 390 updates, however many are made.
    keras = _factors(391, 390, schedule="inverse_time", decay=1e-2, epochs=60)
    assert keras[:2] == pytest.approx([1, 1 / (1 + 1e-2 / 60)])
    assert keras[390] == pytest.approx(1 / (1 + 390 * 1e-2 / 60))
    exponential = _factors(6, 1, schedule="exponential", decay=0.9, decay_epochs=2)
    assert exponential == pytest.approx([1, 1, 0.9, 0.9, 0.81, 0.81])


def test_warmup_by_hand():
    # 3 steps up, then the schedule; a multi-stage one counts its epochs from the start.
    assert _factors(5, 3, warmup=1, schedule="constant") == [0.25, 0.5, 0.75, 1, 1]
    assert _factors(5, 1, warmup=3, schedule="polynomial") == [0.25, 0.5, 0.75, 1, 0.5]
    multistep = {"schedule": "multistep", "milestones": [2], "decay": 0.5}
    assert _factors(3, 1, warmup=1, **multistep) == [0.5, 1, 0.5]


def test_linear_scaling():
    config = from_dict({"lr": 0.1, "base_batch": 256, "batch_size": 32, "accumulations": 4})
    assert scaled_lr(config, ranks=8) == pytest.approx(0.4)
    assert scaled_lr(from_dict({"lr": 0.1}), ranks=8) == 0.1


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_weight_decay_leaves_norms_and_biases_out(optimizer):
    model = build_model("mobilenetv2_cifar", 2, "EvoNormS0", width=0.1)
    config = from_dict({"optimizer": optimizer, "weight_decay": 0.5})
    decayed, others = make_optimizer(model, config, 0.1).param_groups
    assert decayed["weight_decay"] == 0.5
    assert others["weight_decay"] == 0
    assert {p.ndim for p in others["params"]} == {1}
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    count = sum(len(g["params"]) for g in (decayed, others))
    assert count == len(list(model.parameters()))
    everything = from_dict({"optimizer": optimizer, "weight_decay": 0.5, "decay_all": True})
    (group,) = make_optimizer(model, everything, 0.1).param_groups
    assert len(group["params"]) == count


def test_sgd_step_by_hand():
    parameter = torch.nn.Parameter(torch.ones(1, 1))
    module = torch.nn.ParameterList([parameter])
    config = from_dict({"momentum": 0.5, "weight_decay": 0.1})
    optimizer = make_optimizer(module, config, 1.0)
    parameter.grad = torch.full((1, 1), 0.2)
    optimizer.step()
    # Gradient 0.2 + 0.1; Nesterov adds half of the momentum, which is the gradient: 0.3 + 0.15.
    assert parameter.item() == pytest.approx(1 - 0.45)


CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.yaml"))


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if "sweep" not in p.name], ids=lambda p: p.stem
)
def test_shipped_configs(path):
    """Every file is read, and its model can be built."""
    config = load_config(path)
    if path.stem.startswith("Base"):
        return
    assert path.stem in (config.output_dir.rpartition("/")[2], "cifar10_mini_inception")
    with torch.device("meta"):
        model = build_classifier(config, 10)
    make_optimizer(model, config, config.lr)


def test_the_papers_resnet_schedule():
    """1251 updates an epoch; the rate is 0.4 for 1024 images, and falls after 30, 60, 80 epochs."""
    config = load_config(CONFIGS[0].parent / "imagenet_resnet50_EvoNormS0.yaml")
    lr, steps = scaled_lr(config, ranks=8), 90 * 1251
    rates = [lr * lr_factor(config, int(e * 1251), steps, 1251) for e in (2.5, 5, 29.9, 30, 60, 80)]
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.04, 0.004, 0.0004], rel=1e-3)


def test_holdout_on_the_command_line_takes_the_place_of_the_files_val_data(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("data: a\nval_data: b\n")
    assert load_config(path, ["holdout=5"]).val_data == ""
    with pytest.raises(ConfigError, match="holdout=5 is instead of val_data=c: give one of them"):
        load_config(path, ["holdout=5", "val_data=c"])
