"""Whole runs on images made on the spot."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from evonorm_plugins.classification.data import open_data
from evonorm_plugins.classification.run import FORMAT, train
from evonorm_plugins.classification.trainer import Trainer
from evonorm_plugins.cli.classify import main
from evonorm_plugins.errors import ConfigError, NonFiniteError
from evonorm_plugins.training.ranks import Ranks
from evonorm_plugins.training.records import read_records

ROOT = Path(__file__).parents[2]


def _weights(folder, key="model"):
    return FORMAT.load(folder / "checkpoint.pt")[key]


def _same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "BN-ReLU"])
def test_learns_what_there_is_to_learn(config, tmp_path, norm):
    records = []
    options = {"batch_size": 16, "epochs": 20, "eval_every": 5, "warmup": 2, "lr": 0.02}
    result = train(config(norm=norm, **options), on_epoch=records.append)
    assert result["status"] == "done"
    assert result["val_accuracy"] == 1.0
    assert result["epochs"] == records
    assert [r["step"] for r in records] == [10, 20, 30, 40]
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert result == json.loads((tmp_path / "run/result.json").read_text())
    best = FORMAT.load(tmp_path / "run/best.pt")
    assert best["record"]["val_accuracy"] == 1.0
    assert best["classes"] == ["bright", "dark"]


def test_what_a_run_leaves(config, tmp_path):
    result = train(config(epochs=3, log_every=2, eval_every=2))
    assert (result["steps"], result["step"]) == (12, 12)
    assert [r["epoch"] for r in result["epochs"]] == [2, 3]
    assert [step for step, _ in result["loss_curve"]] == [2, 4, 6, 8, 10, 12]
    assert result["images_per_second"] == pytest.approx(8 / result["step_seconds_median"])
    assert 100 < result["peak_memory_mib"] < 10_000
    assert result["versions"]["torch"] == torch.__version__
    folder = tmp_path / "run"
    lines = read_records(folder / "metrics.jsonl")
    assert [r["loss"] for r in lines if "loss" in r] == [v for _, v in result["loss_curve"]]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == result["config"]
    assert list((folder / "tensorboard").iterdir())


def test_an_epoch_of_some_updates(config, tmp_path):
    """Validation after every 3; a longer run goes on as if it had been asked for at once."""
    options = {"steps_per_epoch": 3, "schedule": "inverse_time", "epochs": 60, "augment": "affine"}
    result = train(config(**options, steps=6))
    assert [(r["step"], r["epoch"]) for r in result["epochs"]] == [(3, 1), (6, 2)]
    train(config(**options, steps=9), resume=True)
    train(config(**options, steps=9, output_dir=str(tmp_path / "whole")))
    assert _same(_weights(tmp_path / "run"), _weights(tmp_path / "whole"))
    with_epochs = config(**{**options, "epochs": 2, "output_dir": str(tmp_path / "epochs")})
    assert train(with_epochs)["steps"] == 6


def test_reported_losses_are_those_of_the_model(config, tmp_path):
    """With a rate of nothing, what is reported can be computed afterwards."""
    values = config(augment="none", lr=1e-12, weight_decay=0.0, epochs=1)
    result = train(values)
    data = open_data(values)
    model = Trainer(values, Ranks("cpu"), data).model
    model.load_state_dict(_weights(tmp_path / "run"))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))

    def loss_and_accuracy(images, labels):
        with torch.no_grad():
            logits = model((images / 255 - mean) / std)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return loss.item(), (logits.argmax(1) == labels).float().mean().item()

    loss, accuracy = loss_and_accuracy(*map(torch.cat, zip(*data.val_batches(), strict=True)))
    assert result["val_loss"] == pytest.approx(loss, rel=1e-4)
    assert result["val_accuracy"] == pytest.approx(accuracy)
    loss, _ = loss_and_accuracy(data.train.images, data.train.labels)
    assert result["train_loss"] == pytest.approx(loss, rel=1e-4)


def test_accumulations_are_one_large_batch_for_sample_statistics(config, tmp_path):
    train(config(batch_size=16, steps=3))
    train(config(batch_size=4, accumulations=4, steps=3, output_dir=str(tmp_path / "parts")))
    whole, parts = _weights(tmp_path / "run"), _weights(tmp_path / "parts")
    for key, tensor in whole.items():
        torch.testing.assert_close(parts[key], tensor, rtol=1e-3, atol=1e-5)


def test_accumulations_are_many_workers_for_batch_statistics(config, tmp_path):
    """A part's statistics are its own: BN gives other weights, by more than rounding."""
    values = {"norm": "BN-ReLU", "steps": 3}
    train(config(**values, batch_size=16))
    train(
        config(**values, batch_size=4, accumulations=4, output_dir=str(tmp_path / "parts")),
    )
    whole, parts = _weights(tmp_path / "run"), _weights(tmp_path / "parts")
    assert max((parts[k] - whole[k]).abs().max() for k in whole if "weight" in k) > 1e-3
    assert whole["features.0.1.norm.num_batches_tracked"] == 3
    assert parts["features.0.1.norm.num_batches_tracked"] == 12


DROPOUT = {
    "model": "timm:mobilenetv3_small_050",
    "model_options": {"drop_rate": 0.3},
    "width": None,
}


@pytest.mark.parametrize(
    "extra", [{**DROPOUT, "ema_decay": 0.9, "optimizer": "adam"}, {"precision": "bf16"}]
)
def test_stopped_and_resumed_is_the_same_run(config, tmp_path, monkeypatch, extra):
    """Stopped in the middle of an epoch, by a signal, twice; dropout goes on where it was."""
    values = {"log_every": 3, "epochs": 3, **extra}
    whole = train(config(**values))
    parts, real = config(**values, output_dir=str(tmp_path / "parts")), Trainer.train_step
    for stop_at in (2, 7, None):

        def stopping(self, *args, stop_at=stop_at):
            result = real(self, *args)
            if self.step == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return result

        monkeypatch.setattr(Trainer, "train_step", stopping)
        result = train(parts, resume=True)
        assert result["status"] == ("done" if stop_at is None else "stopped")
        assert stop_at is None or result["step"] == stop_at
    for key in ("model", "ema"):
        if extra.get("ema_decay") or key == "model":
            assert _same(_weights(tmp_path / "run", key), _weights(tmp_path / "parts", key))
    for key in ("epochs", "loss_curve", "val_accuracy"):
        assert result[key] == whole[key]
    kept = [
        [{k: v for k, v in r.items() if "second" not in k} for r in read_records(f)]
        for f in (tmp_path / "run/metrics.jsonl", tmp_path / "parts/metrics.jsonl")
    ]
    assert kept[0] == kept[1]


def test_average_of_the_weights(config, tmp_path):
    """By hand: a decay of at most (1 + t) / (10 + t), so 2/11 and 3/12 after two steps."""
    values = config(ema_decay=0.9, steps=2)
    first = Trainer(values, Ranks("cpu"), open_data(values)).model.state_dict()
    first = {k: v.clone() for k, v in first.items()}
    train(config(ema_decay=0.9, steps=1, schedule="constant", output_dir=str(tmp_path / "one")))
    train(config(ema_decay=0.9, steps=2, schedule="constant"))
    one, two = _weights(tmp_path / "one"), _weights(tmp_path / "run")
    average = _weights(tmp_path / "run", "ema")
    for key, start in first.items():
        after_one = start * (2 / 11) + one[key] * (9 / 11)
        torch.testing.assert_close(average[key], after_one * 0.25 + two[key] * 0.75)


def test_not_finite_names_the_step_and_keeps_what_there_is(config, tmp_path, monkeypatch):
    real = Trainer.inputs

    def broken(self, images):
        return real(self, images) * (float("nan") if self.step == 6 else 1)

    monkeypatch.setattr(Trainer, "inputs", broken)
    with pytest.raises(NonFiniteError, match=r"step 7: the training loss is nan") as caught:
        train(config(checkpoint_every=1))
    result = caught.value.result
    assert result["status"] == "not finite"
    assert (result["step"], len(result["epochs"])) == (6, 1)
    assert json.loads((tmp_path / "run/result.json").read_text()) == result
    assert FORMAT.load(tmp_path / "run/checkpoint.pt")["step"] == 4


def test_a_gradient_that_is_not_finite_changes_nothing(config):
    values = config()
    trainer = Trainer(values, Ranks("cpu"), open_data(values))
    parameters = list(trainer.model.parameters())
    before = [p.detach().clone() for p in parameters]
    parameters[0].register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(NonFiniteError, match="step 1: the norm of the gradients is nan"):
        trainer.train_step(trainer.data.train.batches(0), 10, 10)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_a_large_rate_with_clipping_stays_finite(config):
    result = train(config(lr=10.0, clip_grad=0.1, steps=6))
    assert result["val_loss"] == result["val_loss"]


def test_label_smoothing(config):
    """Of a model that says nothing, the loss is log 2 with any smoothing; of others it grows."""
    plain = train(config(steps=1, lr=1e-12))["train_loss"]
    values = config(steps=1, lr=1e-12, label_smoothing=0.5)
    trainer = Trainer(values, Ranks("cpu"), open_data(values))
    with torch.no_grad():
        images, labels = next(iter(trainer.data.train.batches(0)))
        logs = trainer.model(trainer.inputs(images)).log_softmax(1)
    expected = -(
        0.75 * logs.gather(1, labels[:, None]) + 0.25 * logs.gather(1, 1 - labels[:, None])
    )
    batches = iter(trainer.data.train.batches(0))
    assert trainer.train_step(batches, 1, 1)[0] == pytest.approx(expected.mean().item())
    assert plain != pytest.approx(expected.mean().item(), abs=1e-6)


def test_a_folder_with_a_run_is_not_overwritten(config):
    train(config(steps=1))
    with pytest.raises(ConfigError, match="holds a run already: go on with --resume"):
        train(config(steps=1))
    with pytest.raises(ConfigError, match=r"norm='EvoNormS0' .now 'FRN'.: give the same"):
        train(config(steps=2, norm="FRN"), resume=True)


def test_a_finished_run_is_only_reported(config):
    first = train(config(steps=3))
    again = train(config(steps=3), resume=True)
    assert again["val_accuracy"] == first["val_accuracy"]
    assert again["epochs"] == first["epochs"]


def _file(tmp_path, values):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("cross_replica", [True, False])
def test_two_ranks(command, options, config, tmp_path, cross_replica):
    """With cross-replica statistics, two ranks are one process with both their images."""
    values = {"norm": "EvoNormB0", "steps": 2, "lr": 1e-3, "cross_replica": cross_replica}
    folder = tmp_path / "two"
    path = _file(tmp_path, options(**values, batch_size=8, output_dir=str(folder)))
    process = command(["--config", path], ranks=2)
    output = "".join(process.communicate(timeout=120))
    assert process.returncode == 0, output
    train(config(**values, batch_size=16))
    two, one = _weights(folder), _weights(tmp_path / "run")
    differences = [(two[k] - one[k]).abs().max().item() for k in one if "weight" in k]
    assert (max(differences) < 1e-4) == cross_replica
    result = json.loads((folder / "result.json").read_text())
    assert result["versions"]["ranks"] == 2
    if cross_replica:
        alone = json.loads((tmp_path / "run/result.json").read_text())
        assert result["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        (["steps=1"], 0, "done: val accuracy 0"),
        (["lrr=1"], 2, "error: there is no option 'lrr'; did you mean 'lr'"),
        (["data=no.zip"], 2, "error: data=no.zip: there is no such folder or file"),
        (["model=resnet5_cifar"], 2, "did you mean 'resnet50_cifar'"),
        (["steps=3", "lr=1e30"], 1, "the training loss is"),
        (["--config", "no.yaml"], 2, "error: 'no.yaml' is no file and no classification config"),
    ],
)
def test_command_line(options, tmp_path, capsys, overrides, status, message):
    path = _file(tmp_path, options())
    assert main(["--config", str(path), *overrides]) == status
    assert message in capsys.readouterr().err


def test_signals_save(options, tmp_path):
    path = _file(tmp_path, options(epochs=100_000))
    script = [sys.executable, ROOT / "tools/train_classifier.py"]
    process = subprocess.Popen(
        [*script, "--config", path, "eval_every=0", "checkpoint_every=1000"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (lines.exists() and lines.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1, output
    assert "--resume goes on" in output
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "stopped"
    assert FORMAT.load(tmp_path / "run/checkpoint.pt")["step"] == result["step"]


def test_the_result_as_json(options, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(options(epochs=1)))
    assert main(["--config", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "run/result.json").read_text())
    assert printed["status"] == "done"
