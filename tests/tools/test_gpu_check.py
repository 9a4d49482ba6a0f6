"""tools/gpu_check.py: a dry run, verdicts, and what becomes of failures and of too little time."""

import importlib
import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from evonorm_plugins import command

TOOLS = Path(__file__).parents[2] / "tools"
pytest.importorskip("triton")


@pytest.fixture
def load(monkeypatch):
    """``load(name)``: a module of tools/gpu."""
    monkeypatch.syspath_prepend(TOOLS)
    return lambda name: importlib.import_module(f"gpu.{name}" if name else "gpu")


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """Exit status, stderr, gpu_check.json and gpu_check.md of a dry run."""
    out = tmp_path_factory.mktemp("gpu")
    arguments = [sys.executable, str(TOOLS / "gpu_check.py"), "--dry-run", "--out", str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert sorted(path.name for path in out.iterdir()) == ["gpu_check.json", "gpu_check.md"]
    result = json.loads((out / "gpu_check.json").read_text())
    return done.returncode, done.stderr, result, (out / "gpu_check.md").read_text()


def test_dry_run(dry):
    status, err, result, text = dry
    assert status == 0, err
    assert result["dry_run"]
    assert [check for check in result["check"] if check["verdict"] != "PASS"] == []
    checks = {check["name"].partition(":")[0] for check in result["check"]}
    assert checks == {
        *("accuracy", "CUDA graph", "streams", "second device"),
        *("AMP with GradScaler", "2^31 elements"),
    }
    accuracy = " ".join(check["name"] for check in result["check"])
    for name in ("EvoNormS0", "EvoNormS1", "EvoNormS2", "EvoNormB0", "EvoNormB1", "EvoNormB2"):
        assert f"accuracy: {name} " in accuracy
    assert {row["competitor"] for row in result["layer"]} >= {"EvoNormS0", "BN+ReLU", "copy"}
    assert {row["layout"] for row in result["host"]} == {"contiguous", "channels_last"}
    # A forward pass of few groups that fit is one kernel, and the stub counts it.
    launches = {(row["competitor"], row.get("forward_launches")) for row in result["host"]}
    assert ("EvoNormS0", 1) in launches
    assert ("BN+ReLU", 0) in launches
    verdicts = {goal["verdict"] for goal in result["goals"]}
    assert verdicts <= {"PASS", "dry run", "not measured"}
    assert result["environment"]["torch"] == torch.__version__
    assert "A dry run on a CPU: its times mean nothing." in text
    for goal in result["goals"]:
        assert f"| {goal['goal']} | {goal['asked']} |" in text


def test_models_of_a_dry_run(dry):
    _, _, result, text = dry
    skipped = {row["name"].split()[-1].partition(":")[0]: row for row in result["skipped"]}
    models = {row["model"] for row in result["model"]}
    assert "resnet50" in models
    assert "mask_rcnn" in models or skipped["mask_rcnn"]["reason"].endswith("is not installed")
    assert all(row["median_ms"] > 0 for row in result["model"])
    assert "compute-sanitizer | a dry run has no device" in text


def layer(competitor, impl, milliseconds, shape="64x256x56x56"):
    return {
        "competitor": competitor,
        "impl": impl,
        "median_ms": milliseconds,
        "shape": shape,
        "dtype": "bfloat16",
        "layout": "contiguous",
        "phase": "fwd+bwd",
    }


@pytest.fixture
def rows():
    """98 MiB of x: at the limit of copies, slower than BN+ReLU by a little, well below timm's."""
    times = {
        ("EvoNormS0", "auto"): 1.0,
        ("copy", "existing"): 0.6,
        ("BN+ReLU", "torch.nn"): 0.9,
        ("EvoNormS0", "timm compiled"): 2.0,
    }
    return [layer(*key, milliseconds) for key, milliseconds in times.items()]


def test_goals_of_layers(load, rows):
    rows.append({**layer("EvoNormS0", "auto", 99.0), "phase": "backward"})
    small = "1x32x4x4"
    rows += [layer("EvoNormS0", "auto", 1.0, small), layer("copy", "existing", 0.1, small)]
    found = {goal["goal"]: goal for goal in load("goals").judge({"layer": rows}, False)}
    share = found["share of copy bandwidth, fwd+bwd, 64 MiB and more"]
    assert (share["verdict"], share["found"]) == ("PASS", "0.60 of 1")
    over_bn = found["time over that of BN+ReLU, fwd+bwd"]
    assert (over_bn["verdict"], over_bn["found"]) == ("FAIL", "1.11, missed in 1 of 1")
    assert over_bn["where"] == "EvoNormS0 64x256x56x56 bfloat16 contiguous"
    assert found["time over that of compiled timm, fwd+bwd"]["verdict"] == "PASS"
    unmeasured = [name for name, goal in found.items() if goal["verdict"] == "not measured"]
    assert "time of a training step over that with BN" in unmeasured
    assert "accuracy" in unmeasured


def test_goals_of_host_time_and_models(load):
    host = [
        {"competitor": name, "shape": "1x64x4x4", "layout": "contiguous", "fwd+bwd_of_BN+ReLU": of}
        for name, of in (("EvoNormS1", 1.6), ("EvoNormB2", 1.9), ("affine", 1.0), ("GN+SiLU", 9))
    ]
    model = {"model": "resnet50", "images": 4, "size": "224x224", "dtype": "float32"}
    models = [
        {**model, "norm": norm, "median_ms": ms}
        for norm, ms in (("BN-ReLU", 10.0), ("GN-ReLU", 99.0), ("EvoNormB0", 9.0))
    ]
    found = load("goals").judge({"host": host, "model": models}, False)
    verdicts = {goal["goal"].rpartition(", ")[2]: goal["verdict"] for goal in found}
    assert (verdicts["S"], verdicts["B"], verdicts["affine"]) == ("FAIL", "PASS", "PASS")
    assert verdicts["time of a training step over that with BN"] == "PASS"


@pytest.fixture
def section(load, tmp_path):
    """``section(seconds)``: one, and a function that reads what it has recorded."""

    def make(seconds):
        path = tmp_path / "records"
        args = Namespace(dry_run=True, part=(1, 1), records=path, until=time.time() + seconds)
        return load("sections").Section(args), lambda: load("command").read(path)

    return make


def test_cases_go_on_after_one_that_fails(section, load):
    here, recorded = section(60)

    def raises(error):
        raise error

    here.check("graph: first", raises, RuntimeError("an error\nwith lines"))
    here.check("graph: second", lambda: "a difference")
    here.check("graph: third", lambda: None)
    here.check("graph: fourth", raises, load("sections").NotHere("there is one device"))
    here.attempt("large", raises, torch.OutOfMemoryError("too much"))
    here.attempt("import", raises, ModuleNotFoundError("no", name="yaml"))
    rows = recorded()
    verdicts = [(row["verdict"], row["detail"]) for row in rows if row["kind"] == "check"]
    failed = [("FAIL", "RuntimeError: an error"), ("FAIL", "a difference")]
    assert verdicts == [*failed, ("PASS", "")]
    reasons = [row["reason"] for row in rows if row["kind"] == "skipped"]
    assert reasons[0] == "there is one device"
    assert reasons[1:] == ["this device has too little memory for it", "yaml is not installed"]
    given = {"check": rows[:3], "skipped": rows[3:4]}
    (goal,) = [g for g in load("goals").judge(given, False) if g["goal"] == "graph"]
    assert (goal["verdict"], goal["found"]) == ("FAIL", "1 of 3, 1 skipped")
    assert goal["where"] == "graph: first: RuntimeError: an error"


def test_a_device_that_is_lost_ends_its_process(section):
    here, recorded = section(60)

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        here.check("accuracy: S0", lost)
    assert "illegal memory access" in recorded()[0]["detail"]


def test_no_case_begins_that_may_take_too_long(section):
    here, recorded = section(0.2)
    called = []
    here.attempt("first", lambda: (called.append(1), time.sleep(0.15)))
    here.attempt("second", called.append, 2)
    assert called == [1]
    assert recorded() == [{"kind": "skipped", "name": "second", "reason": "there was no time left"}]


@pytest.mark.parametrize(
    ("prefix", "detail"),
    [
        (("sh", "-c", "exit 9"), "exit status 9"),
        (("sh", "-c", "exec sleep 60"), "it took too long and was stopped"),
    ],
)
def test_processes_that_do_not_end_well(load, monkeypatch, prefix, detail):
    commands = load("command")
    monkeypatch.setattr(commands, "GRACE", 0.2)
    step = commands.Step(("accuracy",), 0, processes=2, prefix=prefix)
    records = commands.run_step(Namespace(dry_run=True), step, 0)
    assert [(r["verdict"], r["detail"]) for r in records] == [("FAIL", detail)] * 2


def test_a_record_that_is_cut_off(load, tmp_path):
    path = tmp_path / "records"
    path.write_text('{"kind": "host"}\n{"kind": "ho')
    first, second = load("command").read(path)
    assert (first, second["kind"]) == ({"kind": "host"}, "skipped")


def test_an_error_that_is_too_large_is_found(load, monkeypatch):
    """And bits that change: the check sees what is wrong with a kernel."""
    accuracy = load("accuracy")
    original = accuracy.Case.results
    change = {"factor": 1.0, "noise": 0.0}

    def results(self, impl, dtype=None):
        found = original(self, "torch", dtype)
        if impl == "triton":
            found["x"] = found["x"] * change["factor"] + change["noise"]
            change["noise"] *= 2
        return found

    monkeypatch.setattr(accuracy.Case, "results", results)
    case = ("cpu", "EvoNormB0", (2, 4, 3, 5), torch.float32, "contiguous", {})
    assert accuracy.as_good_as_torch(*case) is None
    change["factor"] = 1.001
    assert accuracy.as_good_as_torch(*case).startswith("the error of x is ")
    change.update(factor=1.0, noise=1e-7)
    assert accuracy.as_good_as_torch(*case) == "x has other bits the second time"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device(load, tmp_path, capsys):
    assert command.main(load(""), "tools/gpu_check.py", ["--out", tmp_path]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "torch sees no CUDA device; --dry-run tries this program without one" in err
    (tmp_path / "gpu_check.md").write_text("my notes\n")
    assert command.main(load(""), "tools/gpu_check.py", ["--out", tmp_path, "--dry-run"]) == 2
    assert "gpu_check.md is there already, and not of this command" in capsys.readouterr().err
