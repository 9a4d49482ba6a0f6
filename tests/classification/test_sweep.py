"""Sweeps: the choice of trials, what is recorded, and going on after a stop."""

import csv
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evonorm_plugins.classification import sweep as sweeps
from evonorm_plugins.classification.sweep import load_sweep, ray_tune, report, run_sweep
from evonorm_plugins.classification.sweep.influence import influence
from evonorm_plugins.errors import (
    ConfigError,
    InputError,
    InterruptedRunError,
    NonFiniteError,
    RayError,
    run_command,
)

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "ray[tune]"'
)
SHIPPED = sorted(Path(__file__).parents[2].glob("configs/*_sweep.yaml"))
SEARCH = {"norm": ["BN-ReLU", "EvoNormS0(groups=4)"], "lr": ["1e-1", 0.01, 0.001]}


@pytest.fixture
def sweep_file(tmp_path):
    """``sweep_file(**keys)``: a sweep file of :data:`SEARCH` with other keys replaced."""

    def write(**keys):
        (tmp_path / "base.yaml").write_text(
            f"model: mini_inception\nepochs: 2\ndata: {tmp_path}\nval_data: {tmp_path}\n"
        )
        values = {"base": "base.yaml", "search": SEARCH, "output_dir": str(tmp_path / "out")}
        path = tmp_path / "sweep.yaml"
        path.write_text(json.dumps(values | keys))  # JSON is YAML
        return path

    return write


def stand_in(config, *, resume, on_epoch):
    """Accuracy by a formula; one trial's loss is not finite, another's data is not there."""
    with open(os.path.join(os.path.dirname(config.output_dir), "started"), "a") as f:
        print(os.path.basename(config.output_dir), file=f)
    for epoch in (1, 2):
        accuracy = epoch * config.lr + 0.5 * (config.norm != "BN-ReLU")
        record = {"epoch": epoch, "step": 10 * epoch, "val_accuracy": accuracy, "val_loss": 1.0}
        on_epoch(record)
        if config.norm == "BN-ReLU" and config.lr == 0.1:
            raise NonFiniteError("the loss is nan at step 15")
        if config.norm == "BN-ReLU" and config.lr == 0.01 and not Path("fixed").exists():
            raise FileNotFoundError("no data")
    return {"status": "done", "epochs": [record], "seconds": 0.1}


def in_process(configs, train, sweep, progress, ended):
    """In place of Ray: one trial after the other."""
    from evonorm_plugins.classification.sweep.trial import run_trial

    for number, config in configs.items():
        os.makedirs(config["output_dir"], exist_ok=True)
        ended(number, run_trial(config, train, lambda r, number=number: progress(number, r)))


@pytest.fixture
def without_ray(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_tune, "start", lambda sweep, address, on_hang: None)
    monkeypatch.setattr(ray_tune, "run_trials", in_process)
    monkeypatch.chdir(tmp_path)


def started(tmp_path):
    return (tmp_path / "out/trials/started").read_text().split()


def test_values_are_those_of_the_training_config(sweep_file):
    sweep = load_sweep(sweep_file())
    assert sweep.search["lr"] == [0.1, 0.01, 0.001]  # "1e-1" is a string to YAML
    assert sweep.combinations == 6


def test_the_sweep_of_mini_inception():
    sweep = load_sweep(Path(__file__).parents[2] / "configs/mini_inception_sweep.yaml")
    assert sweep.combinations == 5 * 6 * 6 * 2
    assert sweep.search["groups"] == [4, 8, 12, 16, 32]  # numbers, which have a correlation
    assert sweep.search["lr"] == [1e-2, 1e-3, 1e-4, 3e-4, 3e-5, 1e-5]
    assert (sweep.base["model"], sweep.base["batch_size"]) == ("mini_inception", 128)


def test_trials_are_all_different_and_more_begin_with_the_same(sweep_file):
    few = load_sweep(sweep_file(trials=3)).choose()
    every = load_sweep(sweep_file(trials=50)).choose()
    assert every[:3] == few
    assert len(every) == 6 == len({(t["norm"], t["lr"]) for t in every})
    assert load_sweep(sweep_file(trials=6, search_seed=1)).choose() != every


WORKERS = {
    "many": {"batch_size": 2, "accumulations": 64},
    "one": {"batch_size": 128, "accumulations": 1},
}


def test_settings_that_change_together(sweep_file):
    path = sweep_file(search={"lr": [0.1, 0.01], "workers_like": WORKERS}, trials=None)
    sweep = load_sweep(path)
    assert len(sweep.choose()) == 4
    configs = [sweep.trial_config(k, values) for k, values in enumerate(sweep.choose())]
    found = {(c["lr"], c["batch_size"], c["accumulations"]) for c in configs}
    assert found == {(0.1, 2, 64), (0.1, 128, 1), (0.01, 2, 64), (0.01, 128, 1)}
    few = load_sweep(path, ["workers_like=one"]).choose()
    assert {values["workers_like"] for values in few} == {"one"}


@pytest.mark.parametrize(
    ("search", "overrides", "message"),
    [
        ({"lr": [0.1], "a": WORKERS}, ["a=two"], "search.a has no 'two'; it has many, one"),
        ({"accumulations": [1, 2], "a": WORKERS}, [], "search.a.many sets accumulations, which is"),
        ({"lr": WORKERS}, [], "search.lr is a key of the training config"),
        ({"a": {"x": 3}}, [], "must be like {name: {key: value}}"),
        ({"a": {"x": {"batchsize": 3}}}, [], "there is no option 'batchsize'; did you mean"),
    ],
)
def test_bad_settings_that_change_together(sweep_file, search, overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_sweep(sweep_file(search=search), overrides)


def test_overrides(sweep_file):
    overrides = ["lr=0.5", "norm=[BN-ReLU, EvoNormB0]", "trials=4", "model=mini_inception"]
    sweep = load_sweep(sweep_file(), overrides)
    assert sweep.search == {"norm": ["BN-ReLU", "EvoNormB0"], "lr": [0.5]}
    assert sweep.trials == 4
    assert sweep.trial_config(7, {"lr": 0.5})["output_dir"].endswith("out/trials/007")


@pytest.mark.parametrize(
    ("keys", "overrides", "message"),
    [
        ({"search": {}}, [], "search must hold keys"),
        ({"search": [1]}, [], "search must hold keys"),
        ({"search": {"lr": 0.1}}, [], r"search\.lr=0\.1 must be a list"),
        ({"search": {"lr": [0.1, "1e-1"]}}, [], r"search\.lr holds 0\.1 twice"),
        ({"search": {"lr": ["fast"]}}, [], "lr='fast'"),
        ({"search": {"learning": [1]}}, [], "'learning'"),
        ({"search": {"optimizer": ["sgd", "adamm"]}}, [], "adamm"),
        ({"search": {"output_dir": ["a"]}}, [], "a folder of its own"),
        ({"base": None}, [], "base must name"),
        ({"base": 3}, [], "base must name a training config, not 3"),
        ({}, ["base="], "base must name a training config, not ''"),
        ({}, ["base=none.yaml"], r"'none\.yaml' is no file and no classification"),
        ({"base": "none.yaml"}, [], r"none\.yaml' is no file and no classification"),
        ({}, ["search={}"], "search must hold keys"),
        ({}, ["search=3"], "search must hold keys"),
        ({}, ["search_seed=-1"], "search_seed=-1 must be at least 0"),
        ({"trails": 3}, [], "'trails'; did you mean 'trials'"),
        ({}, ["trials=0"], "trials=0 must be at least 1"),
        ({}, ["cpus_per_trial=0.5"], r"cpus_per_trial=0\.5 is not int"),
        ({}, ["gpus_per_trial=-1"], "gpus_per_trial=-1"),
        ({}, ["modell=x"], "'modell'"),
    ],
)
def test_bad_input_is_named(sweep_file, keys, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_sweep(sweep_file(**keys), overrides)


def test_another_training_config(sweep_file, tmp_path, monkeypatch):
    """``base=FILE`` of the command line is a path as any other; the file's is relative to it."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there/other.yaml").write_text("model: resnet8_cifar\nepochs: 9\n")
    path = sweep_file()
    monkeypatch.chdir(tmp_path / "there")
    assert load_sweep(path).base["epochs"] == 2
    base = load_sweep(path, ["base=other.yaml", "batch_size=7"]).base
    assert (base["model"], base["epochs"], base["batch_size"]) == ("resnet8_cifar", 9, 7)
    assert load_sweep(path, ["search={lr: [0.5]}"]).search == {"lr": [0.5]}


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"trials": 3}', '{"trials": [{}]}', "\0"])
def test_a_record_of_a_sweep_that_is_none(sweep_file, without_ray, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sweep.json").write_text(text)
    with pytest.raises(ConfigError, match="is no record of a sweep"):
        run_sweep(load_sweep(sweep_file()), resume=True, train=stand_in)


@pytest.mark.parametrize("folder", ["", "sweep.yaml", "sweep.yaml/out"])
def test_a_folder_that_cannot_be_written(sweep_file, without_ray, folder):
    sweep = load_sweep(sweep_file(output_dir=folder))
    with pytest.raises(ConfigError, match=r"^output_dir=.*(empty|is a file, not a folder)"):
        run_sweep(sweep, train=stand_in)


def test_every_trial_is_recorded(sweep_file, without_ray, tmp_path):
    records = run_sweep(load_sweep(sweep_file(trials=6)), train=stand_in)
    by_values = {(r["values"]["norm"], r["values"]["lr"]): r for r in records}
    finished = by_values["EvoNormS0(groups=4)", 0.1]
    assert (finished["status"], finished["epoch"]) == ("finished", 2)
    assert finished["val_accuracy"] == pytest.approx(0.7)
    diverged = by_values["BN-ReLU", 0.1]
    assert (diverged["status"], diverged["epoch"]) == ("diverged", 1)
    assert diverged["error"] == "the loss is nan at step 15"
    failed = by_values["BN-ReLU", 0.01]
    assert failed["error"] == "FileNotFoundError: no data"
    folder = tmp_path / f"out/trials/{failed['trial']:03d}"
    assert "stand_in" in (folder / "error.txt").read_text()
    assert json.loads((tmp_path / "out/sweep.json").read_text())["trials"] == records


def test_paths_hold_in_any_folder(sweep_file, without_ray, monkeypatch, tmp_path):
    """Ray runs a trial in a folder of its own."""
    seen = []

    def look(configs, *args):
        seen.extend(configs.values())
        in_process(configs, *args)

    monkeypatch.setattr(ray_tune, "run_trials", look)
    run_sweep(load_sweep(sweep_file(trials=2, output_dir="out")), train=stand_in)
    folders = [str(tmp_path / f"out/trials/00{k}") for k in range(2)]
    assert [c["output_dir"] for c in seen] == folders
    assert all(os.path.isabs(c[key]) for c in seen for key in ("data", "val_data") if c[key])
    assert {c["data"] for c in seen} != {""}


def test_what_people_read(sweep_file, without_ray, tmp_path):
    records = run_sweep(load_sweep(sweep_file(trials=6)), train=stand_in)
    text = (tmp_path / "out/results.txt").read_text().splitlines()
    assert text[0].split() == [
        *("trial", "norm", "lr", "accuracy", "loss", "epoch", "seconds", "status")
    ]
    assert text[1].split()[1:4] == ["EvoNormS0(groups=4)", "0.1", "0.7000"]
    mean = (0.7 + 0.52 + 0.502) / 3
    [line] = [row for row in text if row.startswith("norm=EvoNormS0")]
    assert line.split()[1:] == [f"{mean:.4f}", "0.7000", "3", "0"]
    [line] = [row for row in text if row.startswith("norm=BN-ReLU")]
    assert line.split()[1:] == ["0.0020", "0.0020", "3", "2"]
    with open(tmp_path / "out/results.csv") as f:
        rows = list(csv.DictReader(f))
    assert [int(row["trial"]) for row in rows] == list(range(6))
    assert [row["status"] for row in rows] == [r["status"] for r in records]
    assert (tmp_path / "out/accuracy.png").read_bytes()[1:4] == b"PNG"


def test_resuming_repeats_what_failed_and_nothing_else(sweep_file, without_ray, tmp_path):
    path = sweep_file(trials=6)
    before = run_sweep(load_sweep(path), train=stand_in)
    failed = [f"{r['trial']:03d}" for r in before if r["status"] == "failed"]
    assert len(failed) == 1
    (tmp_path / "fixed").touch()
    after = run_sweep(load_sweep(path), resume=True, train=stand_in)
    assert sorted(started(tmp_path)) == sorted([f"{n:03d}" for n in range(6)] + failed)
    assert [r for r in after if r["trial"] != int(failed[0])] == [
        r for r in before if r["trial"] != int(failed[0])
    ]
    assert after[int(failed[0])]["status"] == "finished"


def test_more_trials_of_a_sweep_that_is_done(sweep_file, without_ray, tmp_path):
    run_sweep(load_sweep(sweep_file(trials=2)), train=stand_in)
    (tmp_path / "fixed").touch()
    records = run_sweep(load_sweep(sweep_file(trials=4)), resume=True, train=stand_in)
    assert [r["trial"] for r in records] == [0, 1, 2, 3]
    assert sorted(set(started(tmp_path))) == ["000", "001", "002", "003"]


@pytest.mark.parametrize(
    ("overrides", "resume", "message"),
    [
        ([], False, "holds a sweep already: go on with --resume"),
        (["lr=0.1"], True, "has search="),
        (["search_seed=5"], True, "has search_seed=0, now it is 5"),
        (["epochs=9"], True, r"epochs=2 \(now 9\)"),
        (["data=nowhere"], True, "no data='nowhere'"),
    ],
)
def test_what_does_not_fit_the_folder_is_refused(
    sweep_file, without_ray, tmp_path, overrides, resume, message
):
    path = sweep_file(trials=1)
    run_sweep(load_sweep(path), train=stand_in)
    saved = (tmp_path / "out/sweep.json").read_text()
    with pytest.raises(InputError, match=message):
        run_sweep(load_sweep(path, overrides), resume=resume, train=stand_in)
    assert (tmp_path / "out/sweep.json").read_text() == saved


def test_results_without_a_finished_trial(sweep_file):
    sweep = load_sweep(sweep_file(trials=1))
    values = {"norm": "BN-ReLU", "lr": 0.1}
    record = {"trial": 0, "values": values, "status": "diverged", "error": "nan", "seconds": 1.0}
    assert "trial 0 diverged: nan" in report.as_text(sweep, [record])


def test_correlation_and_importance(monkeypatch):
    """The accuracy depends on the rate, a little on the optimizer, and not on the groups."""
    pytest.importorskip("sklearn")
    search = {"lr": [1, 2, 3, 4], "optimizer": ["adam", "sgd"], "groups": [4, 8], "flip": [True]}
    values = [
        dict(zip(search, chosen, strict=True)) for chosen in itertools.product(*search.values())
    ]
    found = [v["lr"] / 10 + (v["optimizer"] == "adam") / 50 for v in values]
    rows = {name: row for name, *row in influence(search, values, found)}
    assert set(rows) == {"lr", "optimizer=adam", "optimizer=sgd", "groups"}  # flip has one value
    assert next(iter(rows)) == "lr"
    assert rows["lr"][0] == pytest.approx(0.996, abs=1e-3)
    assert rows["optimizer=adam"][0] == -rows["optimizer=sgd"][0] > 0.05
    assert rows["groups"][0] == pytest.approx(0, abs=1e-6)
    assert sum(importance for _, importance in rows.values()) == pytest.approx(1)
    assert rows["lr"][1] > 0.9
    assert rows["groups"][1] < 0.05


def test_names_of_single_trials_are_no_option():
    values = [{"run": name, "lr": 0.1} for name in "abcde"]
    assert influence({"run": list("abcde"), "lr": [0.1]}, values, [0.1, 0.2, 0.3, 0.4, 0.5]) == []


def test_equal_accuracies_have_no_correlation():
    values = [{"lr": lr} for lr in (1, 2, 3, 4, 5)]
    ((name, correlation, importance),) = influence({"lr": [1, 2, 3, 4, 5]}, values, [0.5] * 5)
    assert (name, correlation) == ("lr", None)
    assert not importance


def test_the_report_has_correlation_and_importance(sweep_file, monkeypatch):
    sweep = load_sweep(sweep_file(trials=6))
    records = [
        {"trial": n, "values": v, "status": "finished", "val_accuracy": v["lr"], "seconds": 1.0}
        for n, v in enumerate(sweep.choose())
    ]
    lines = report.as_text(sweep, records).splitlines()
    head = next(k for k, line in enumerate(lines) if line.split() == ["correlation", "importance"])
    assert lines[head + 1].split()[:2] == ["lr", "1.00"]
    others = {line.split()[0] for line in lines[head + 2 :]}
    assert others == {"norm=BN-ReLU", "norm=EvoNormS0(groups=4)"}
    assert "correlation" not in report.as_text(sweep, records[:4])  # they say nothing
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    *_, row, note = report.as_text(sweep, records).splitlines()
    assert len(row.split()) == 2
    assert note.startswith("(the importance needs scikit-learn: pip install")


def test_ctrl_c_keeps_what_ended(sweep_file, without_ray, tmp_path, monkeypatch):
    def stopped_after_two(configs, *rest):
        in_process(dict(list(configs.items())[:2]), *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_tune, "run_trials", stopped_after_two)
    with pytest.raises(InterruptedRunError, match=r"4 of 6 trials to go; .* --resume"):
        run_sweep(load_sweep(sweep_file(trials=6)), train=stand_in)
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 3


@needs_ray
def test_without_ray_nothing_is_written(sweep_file, tmp_path):
    with pytest.raises(RayError, match="no Ray cluster answers"):
        run_sweep(load_sweep(sweep_file()), address="127.0.0.1:1", train=stand_in)
    assert not (tmp_path / "out").exists()


def test_exit_statuses(sweep_file, without_ray, monkeypatch, capsys):
    def main(*args, **options):
        return run_command(lambda: sweeps.main(*args, **options))

    path = sweep_file(trials=2)
    assert main(path, ["modell=x"]) == 2
    assert main("nowhere.yaml") == 2
    monkeypatch.setattr(
        run_sweep, "__kwdefaults__", {**run_sweep.__kwdefaults__, "train": stand_in}
    )
    assert main(path) == 0
    assert capsys.readouterr().out.startswith("trial  norm")
    assert main(path) == 2
    assert "go on with --resume" in capsys.readouterr().err
    out = f"output_dir={path.parent}/other"
    assert main(path, [out, "norm=BN-ReLU", "lr=[0.1, 0.01]"]) == 1  # diverged, failed
    capsys.readouterr()
    assert main(path, resume=True, as_json=True) == 0
    trials = json.loads(capsys.readouterr().out)
    assert trials == json.loads((path.parent / "out/sweep.json").read_text())["trials"]
    assert [trial["trial"] for trial in trials] == [0, 1]


SCRIPT = """
import os, sys, time
from evonorm_plugins.classification.sweep import load_sweep, run_sweep
from evonorm_plugins.errors import InterruptedRunError

def train(config, *, resume, on_epoch):
    os.makedirs(config.output_dir, exist_ok=True)
    open(os.path.join(config.output_dir, "starts"), "a").write("x")
    record = {"epoch": 1, "val_accuracy": config.lr, "val_loss": 1.0}
    on_epoch(record)
    if config.lr == 0.01:
        os._exit(1)
    while config.lr == 0.001:
        time.sleep(0.1)
    return {"status": "done", "epochs": [record], "seconds": 0.1}

try:
    run_sweep(load_sweep(sys.argv[1]), train=train)
except InterruptedRunError as error:
    print(error)
"""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_sweeps(path):
    """Every file is read, and so is the config of every trial."""
    sweep = load_sweep(path)
    assert sweep.choose()


@needs_ray
def test_on_ray_with_a_lost_process_and_a_stop(sweep_file, tmp_path, monkeypatch):
    path = sweep_file(search={"lr": [0.01, 0.5, 0.001]}, search_seed=2, concurrent=1)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    sweeping = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], **options)
    lines = []
    for line in sweeping.stderr:
        lines.append(line.partition(" of 3 ")[2].rstrip())
        if lines[-1].startswith("(lr=0.001): epoch 1"):
            sweeping.send_signal(signal.SIGINT)
            break
    printed, rest = sweeping.communicate(timeout=120)
    # Before it, Ray tells on stdout why the process died.
    assert printed.splitlines()[-1].startswith("stopped with 1 of 3 trials to go"), rest
    assert "(lr=0.5): finished, val_accuracy 0.5000 in 0 s" in lines
    assert any(line.startswith("(lr=0.01): failed: the process died") for line in lines)
    assert "died" in (tmp_path / "out/trials/000/error.txt").read_text()

    started = []

    def finishes(config, *, resume, on_epoch):
        started.append(config.lr)
        record = {"epoch": 1, "val_accuracy": config.lr, "val_loss": 1.0}
        return {"status": "done", "epochs": [record], "seconds": 0.1}

    monkeypatch.setattr(ray_tune, "start", lambda sweep, address, on_hang: None)
    monkeypatch.setattr(ray_tune, "run_trials", in_process)
    records = run_sweep(load_sweep(path), resume=True, train=finishes)
    assert started == [0.01, 0.001]  # the finished one is left alone
    assert [(r["values"]["lr"], r["val_accuracy"]) for r in records] == [
        (0.01, 0.01),
        (0.5, 0.5),
        (0.001, 0.001),
    ]


def test_ray_is_imported_by_nothing_but_a_sweep_that_runs():
    code = "import evonorm_plugins.classification.sweep, sys; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_images_held_out_take_the_place_of_validation_data(sweep_file, without_ray):
    sweep = load_sweep(sweep_file(trials=1), ["val_data=", "holdout=4"])
    (record,) = run_sweep(sweep, train=stand_in)
    assert record["status"] == "finished"
