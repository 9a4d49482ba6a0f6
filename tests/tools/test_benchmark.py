"""evonorm bench and tools/benchmark.py: what is timed, what is counted, what is written."""

import csv
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from evonorm_plugins import cli, command
from evonorm_plugins.benchmarks import host, layers, measure
from evonorm_plugins.layers.graph.known import KNOWN

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def load(monkeypatch):
    """``load(name)``: a module of tools/benchmarks, as it is when tools/benchmark.py runs."""
    monkeypatch.syspath_prepend(TOOLS)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def main(monkeypatch):
    """``main(arguments)``: the exit status of tools/benchmark.py."""
    monkeypatch.syspath_prepend(TOOLS)
    module = importlib.import_module("benchmarks")

    def main(arguments):
        try:
            return command.main(module, "tools/benchmark.py", arguments)
        except SystemExit as end:
            return end.code

    return main


class FakeClock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0

    def flush(self):
        self.now += 1000  # outside of every timed part

    def mark(self):
        return self.now

    def milliseconds(self, start, end):
        return end - start


class FakeLayer:
    """Forward takes 1, backward 10, freeing the output 100."""

    def __init__(self, clock):
        self.clock = clock

    def clear(self):
        self.clock.now += 1000

    def forward(self):
        clock = self.clock
        clock.now += 1

        class Output:
            def __del__(self):
                clock.now += 100

        return Output()

    def backward(self, y):
        self.clock.now += 10


def test_phases():
    clock = FakeClock()
    times = measure.time_phases(FakeLayer(clock), clock)
    assert times == {"forward": 1, "backward": 10, "fwd+bwd": 111}
    assert measure.time_phases(FakeLayer(clock), clock, "inference") == {"forward": 1}


def test_competitors_take_turns():
    calls = []

    def fake(name):
        def run():
            calls.append(name)
            return {"forward": len(calls)}

        return run

    times = measure.interleave({k: fake(k) for k in "abcd"}, 6, warmup=2)
    rounds = [calls[k : k + 4] for k in range(0, len(calls), 4)]
    assert [sorted(order) for order in rounds] == [list("abcd")] * 8
    assert len(set(map(tuple, rounds))) > 1, "every round has the same order"
    # Each has the times of its own six rounds, those of the warm-up left out.
    for name in "abcd":
        assert times[name]["forward"] == [
            k + 1 for k, called in enumerate(calls) if called == name and k >= 8
        ]


def test_budget():
    interleave, clock = measure.interleave, FakeClock()

    def run():
        clock.now += 1
        return {"forward": 1}

    def rounds(seconds):
        return len(interleave({"a": run}, 100, seconds, now=clock.mark)["a"]["forward"])

    assert rounds(10) == 10
    assert rounds(0.5) == 3, "three rounds at least"


def test_quantiles():
    measured = measure.quantiles([float(k) for k in range(10, -1, -1)])
    assert measured == {"median_ms": 5.0, "p10_ms": 1.0, "p90_ms": 9.0}


def test_busy_machine(capsys):
    warn = measure.warn_if_busy
    warn(0.2)
    assert capsys.readouterr().err == ""
    warn(1.7)
    assert "the load average is 1.70" in capsys.readouterr().err


def test_kept_bytes():
    kept = measure.kept_bytes
    x, w = torch.rand(3, 5, requires_grad=True), torch.rand(5, requires_grad=True)
    assert kept(lambda: x * w, [x, w]) == 0
    assert kept(lambda: x.exp(), [x]) == 60, "exp keeps its output"
    assert kept(lambda: x * x[:1].exp() * x[:1].exp(), [x]) == 60 + 2 * 20
    assert kept(lambda: (y := x.exp()) * y, [x]) == 60, "what is kept twice counts once"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("fresh", [False, True])
def test_floor(layout, fresh):
    x, dy = (torch.rand(2, 4, 3, 3).contiguous(memory_format=layout) for _ in range(2))
    floor = measure.Copies(x, dy, fresh)
    outputs = [floor.forward(), floor.forward()]
    floor.backward(outputs[0])
    assert torch.equal(outputs[0], x)
    assert torch.equal(floor.dx, x)
    assert outputs[0].stride() == x.stride()
    assert (outputs[0].data_ptr() != outputs[1].data_ptr()) == fresh
    assert floor.half_out.numel() * 2 == x.numel()


def read(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def test_layers(main, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("timm")
    out, picture = tmp_path / "layers.csv", tmp_path / "layers.png"
    shapes = ["2x64x5x5", "1x6x4x7"]
    options = ["--layers", "EvoNormS0", "EvoNormB1", "--repeats", "4"]
    arguments = ["layers", "--shapes", *shapes, *options, "--csv", str(out), "--plot", str(picture)]
    assert main(arguments) == 0
    rows = read(out)
    competitors = {
        *(("EvoNormS0", impl) for impl in ("auto", "torch", "timm")),
        *(("EvoNormB1", impl) for impl in ("auto", "torch")),
        *((pair, "torch.nn") for pair in ("BN+ReLU", "GN+ReLU", "GN+SiLU")),
        ("copy", "existing"),
        ("copy", "fresh"),
    }
    assert Counter((row["shape"], row["dtype"], row["phase"]) for row in rows) == {
        (shape, dtype, phase): len(competitors)
        for shape in shapes
        for dtype in ("float32", "bfloat16")
        for phase in ("forward", "backward", "fwd+bwd")
    }
    assert {(row["competitor"], row["impl"]) for row in rows} == competitors
    for row in rows:
        assert 0 < float(row["p10_ms"]) <= float(row["median_ms"]) <= float(row["p90_ms"])
        assert (row["rounds"], row["threads"]) == ("4", str(torch.get_num_threads()))
        assert row["torch"] == torch.__version__
        assert (row["layout"], row["mode"]) == ("contiguous", "train")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layers.csv", "layers.png"]
    printed = capsys.readouterr()
    assert "2x64x5x5, float32, contiguous, train, 4 rounds" in printed.out
    assert "EvoNormS0 timm" in printed.out
    assert printed.out.count("fwd+bwd bfloat16") == printed.out.count("of, bfloat16") == 2
    assert "round 4" in printed.err
    assert "round 4" not in printed.out


def test_a_layer_of_a_file(main, tmp_path):
    """By its kernel, which keeps little, and node by node."""
    KNOWN["EvoNormS1"].save(tmp_path / "found.json")
    out, name = tmp_path / "found.csv", f"{tmp_path}/found.json"
    options = ["--shapes", "2x32x16x16", "--rivals", "torch", "--repeats", "1", "--csv", str(out)]
    assert main(["layers", "--layers", name, *options, "--dtype", "float32"]) == 0
    with out.open() as file:
        kept = {(r["competitor"], r["impl"]): float(r["kept_MiB"]) for r in csv.DictReader(file)}
    x = 2 * 32 * 16 * 16 * 4 / 2**20
    assert kept[name, "auto"] < 0.1 * x
    assert kept[name, "torch"] > x


def test_kept_by_layers(main, tmp_path):
    out = tmp_path / "layers.csv"
    layers = ["EvoNormS0", "EvoNormS1", "EvoNormS2", "EvoNormB0", "EvoNormB1", "EvoNormB2"]
    layers += ["GN-ReLU", "GN-Swish-1", "GN-Swish", "LN-ReLU", "FRN", "RS + rej"]
    options = ["--shapes", "8x32x16x16", "--repeats", "1", "--csv", str(out), "--layers", *layers]
    assert main(["layers", *options, "--dtype", "float32"]) == 0
    kept = {(row["competitor"], row["impl"]): float(row["kept_MiB"]) for row in read(out)}
    size = 8 * 32 * 16 * 16 * 4 / 2**20
    assert kept["EvoNormS0", "torch"] == 0
    assert kept["copy", "fresh"] == 0
    for layer in layers:
        assert kept[layer, "auto"] < 0.01 * size, "the input and statistics, nothing else"
    # The output, and a mean and a deviation of each channel.
    assert kept["BN+ReLU", "torch.nn"] == pytest.approx(size + 2 * 32 * 4 / 2**20, abs=1e-4)


def test_inference(main, capsys):
    layout = ["--layout", "channels_last", "--dtype", "bfloat16"]
    options = ["--mode", "inference", "--rivals", "BN+ReLU", "--repeats", "2", "--json", *layout]
    assert main(["layers", "--shapes", "2x32x4x4", "--layers", "EvoNormB0", *options]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["competitor"], row["phase"]) for row in rows] == [
        (name, "forward") for name in ("EvoNormB0", "BN+ReLU", "copy", "copy")
    ]
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert {row["kept_MiB"] for row in rows} == {0}


def test_rivals_that_cannot_run(main, monkeypatch, capsys):
    class Refuses(nn.Module):
        def forward(self, x):
            raise RuntimeError("not for this dtype")

    monkeypatch.setitem(layers.TIMM, "EvoNormS0", lambda channels: Refuses())
    options = ["--shapes", "1x4x3x3", "--layers", "EvoNormS0", "--rivals", "timm", "torch"]
    assert main(["layers", *options, "--repeats", "1"]) == 0
    printed = capsys.readouterr()
    assert "EvoNormS0 timm is left out, it cannot run: not for this dtype" in printed.err
    assert "EvoNormS0 torch" in printed.out
    assert "timm" not in printed.out


def test_rivals_for_gpus(main, monkeypatch, capsys):
    """By their names, where they are asked for."""
    for name in ("apex", "Liger"):
        module = nn.Sequential(nn.GroupNorm(1, 4), nn.SiLU())
        monkeypatch.setitem(layers.OTHERS, name, lambda channels, module=module: module)
    options = ["--shapes", "1x4x3x3", "--layers", "EvoNormS0", "--rivals", "apex", "Liger"]
    assert main(["layers", *options, "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert "GN+SiLU apex" in out
    assert "GN+SiLU Liger" in out


def test_the_command_of_an_installed_package(capsys, tmp_path):
    out = tmp_path / "folder/layers.csv"
    options = ["--shapes", "1x4x3x3", "--layers", "EvoNormS0", "--rivals", "torch"]
    command = ["bench", *options, "--repeats", "1", "--json", "--csv", str(out)]
    assert cli.main(command) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["competitor"] for row in rows} == {"EvoNormS0", "copy"}
    assert len(read(out)) == len(rows)
    # Its own file is written anew, another one is not.
    assert cli.main(command) == 0
    out.write_text("my notes\n")
    capsys.readouterr()
    assert cli.main(command) == 2
    assert f"--csv {out} is there already, and not of this command" in capsys.readouterr().err
    assert out.read_text() == "my notes\n"
    assert cli.main([*command, "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layers", "--shapes", "8x256x56"], "'8x256x56' is not a shape like 8x256x56x56"),
        (["layers", "--shapes", "8x0x5x5"], "'8x0x5x5' is not a shape"),
        (["layers", "--layers", "EvoNormS9"], "'EvoNormS9' (choose from"),
        (["layers", "--layers", "none.json"], "cannot read the layer graph none.json: No such"),
        (["layers", "--rivals", "LN"], "'LN' (choose from"),
        (["layers", "--repeats", "0"], "0 must be at least 1"),
        (["layers", "--seconds", "nan"], "nan must be a number above 0"),
        (["layers", "--device", "tpu"], "'tpu' (choose from"),
        (["layers", "--csv", "."], "--csv . is a folder, not a file"),
        (["layers", "--plot", f"{__file__}/a.png"], f"{__file__} is a file, not a folder"),
        (["layers", "--plot", __file__], f"--plot {__file__} is there already, and not of this"),
        (["layers", "--plot", "a.png", "--rivals", "timm"], "add it to --rivals"),
        (["models", "--plot", "a.png", "--norms", "GN"], "add it to --norms"),
        (["models", "--norms", "BM"], "'BM': there is no such norm; known: BN, GN, EvoNormB0"),
        (["models", "--norms", "EvoNormS0(impl='gpu')"], "impl='gpu'"),
        (["models", "--norms", "EvoNormS0(group=1)"], "'EvoNormS0(group=1)'"),
        (["models", "--models", "vgg"], "'vgg' (choose from"),
        (["models", "--size", "-1"], "-1 must be at least 1"),
        (["gan", "--batch", "0"], "0 must be at least 1"),
        (["gan", "--reference", "nowhere"], "--reference nowhere has no BigGANdeep.py"),
        (["gan", "--csv", __file__], f"--csv {__file__} is there already, and not of this"),
        ([], "COMMAND"),
    ],
)
def test_bad_input(main, capsys, arguments, message):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_layers_are_named_where_one_is_unknown(main, capsys):
    main(["layers", "--layers", "EvoNormS9"])
    assert "EvoNormS0" in capsys.readouterr().err.split("choose from")[1]


def test_resnet50(main, tmp_path, capsys):
    pytest.importorskip("torchvision")
    out = tmp_path / "models.csv"
    options = ["--models", "resnet50", "--size", "32", "--rounds", "1", "--norms", "EvoNormS0"]
    assert main(["models", *options, "--csv", str(out)]) == 0
    (row,) = read(out)
    assert (row["model"], row["norm"], row["size"]) == ("resnet50", "EvoNormS0", "32")
    assert float(row["median_ms"]) > 0
    # Gradients and momenta of 25.5 million parameters are part of the peak.
    assert float(row["peak_MiB"]) > 2 * 97 + float(row["kept_MiB"]) / 2
    assert float(row["kept_MiB"]) > 1
    assert "resnet50 8x3x32x32, one training iteration, 1 rounds" in capsys.readouterr().out


def test_models_of_timm(main, load, monkeypatch, capsys):
    pytest.importorskip("timm")
    used = {"timm": 30, "fused": 15, "BN": 20}
    monkeypatch.setattr(
        load("training"),
        "memory",
        lambda name, norm, *_: {"peak_MiB": used[norm], "kept_MiB": 1},
    )
    options = ["--models", "test_efficientnet_evos", "--size", "32", "--rounds", "1"]
    assert main(["timm", *options]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "`test_efficientnet_evos`"
    assert all(float(cell) > 0 for cell in cells[1:6])
    assert cells[6:] == ["30", "15", "20", "0.50", "0.75"]


def test_which_models_of_timm_there_are(main, load, capsys):
    pytest.importorskip("timm")
    assert {"resnetv2_50d_evos", "resnet50_gn", "resnetv2_50d_frn"} <= set(
        load("timm").all_models()
    )
    assert load("training").bn_sibling("resnet50_gn") == "resnet50"
    assert load("training").bn_sibling("efficientnet_b0_g16_evos") is None
    assert main(["timm", "--models", "resnet0_gn"]) == 2
    assert "timm has no model 'resnet0_gn'" in capsys.readouterr().err
    assert main(["timm", "--plot", "a.png"]) == 2
    assert "--plot a.png: this benchmark draws nothing" in capsys.readouterr().err


def test_picture_of_models(load, tmp_path):
    pytest.importorskip("matplotlib")
    report, out = load("models_report"), tmp_path / "models.png"
    rows = [
        {"model": model, "norm": norm, "device": "a CPU", "median_ms": 5.0, "peak_MiB": peak}
        for model in ("resnet50", "mask_rcnn")
        for norm, peak in (("BN", 200.0), ("EvoNormS0", 150.0))
    ]
    report.plot_models(rows, out)
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["models.png"]


def test_where_resnet50_has_its_norms(load):
    pytest.importorskip("torchvision")
    from evonorm_plugins.layers import NormAct

    with torch.device("meta"):
        resnet = load("training").MODELS["resnet50"].build("EvoNormS0").network
    layers = {name: m for name, m in resnet.named_modules() if isinstance(m, NormAct)}
    active = {name.rpartition(".")[2] for name, layer in layers.items() if layer.apply_act}
    affine = {name.rpartition(".")[2] for name, layer in layers.items() if not layer.apply_act}
    assert (active, affine) == ({"bn1", "bn2"}, {"bn3", "1"})  # "1" of a shortcut
    assert Counter(layer.apply_act for layer in layers.values()) == {True: 33, False: 20}
    relus = []
    for module in resnet.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda *_: relus.append(1))
    resnet(torch.zeros(1, 3, 32, 32, device="meta"))
    assert len(relus) == 16, "one after each residual addition"


def test_model_that_cannot_be_built(load, main, monkeypatch, capsys):
    missing = SimpleNamespace(needs="no_such_package.part")
    monkeypatch.setitem(load("training").MODELS, "mask_rcnn", missing)
    assert main(["models", "--models", "mask_rcnn"]) == 1
    err = capsys.readouterr().err
    assert "mask_rcnn is left out: it needs no_such_package, which cannot be imported" in err
    assert "error: no model is left to measure" in err


@pytest.mark.detectron2
def test_mask_rcnn_does_the_same_work_with_every_norm(load, monkeypatch):
    models = load("training")
    original = models.detection_cfg

    def small(norm):
        cfg = original(norm)
        cfg.MODEL.RESNETS.DEPTH = 18
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
        cfg.MODEL.FPN.OUT_CHANNELS = 32
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 128
        for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
            head.CONV_DIM, head.NUM_CONV = 32, 1
        return cfg

    monkeypatch.setattr(models, "detection_cfg", small)
    regions, kept = {}, {}
    for norm in ("BN", "EvoNormB0"):
        training = models.Training("mask_rcnn", norm, size=128)
        seen = regions[norm] = []
        heads = training.model.rcnn.roi_heads
        for head in (heads.box_head, heads.mask_head):
            head.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        weights = [p.detach().clone() for p in training.model.parameters()]
        training.iterate()
        training.iterate()
        assert all(map(torch.equal, weights, training.model.parameters()))
        kept[norm] = training.kept_bytes()
    assert regions["BN"] == regions["EvoNormB0"] == [128, 32] * 3
    assert kept["EvoNormB0"] == pytest.approx(kept["BN"], rel=0.02)


def test_host_time_is_the_least_mean_of_turns(main, capsys):
    """Every competitor beside BN+ReLU, both phases, and launches where they are counted."""
    options = ["--shapes", "1x8x2x2", "--layers", "EvoNormS0", "--repeats", "1", "--json"]
    assert main(["host", *options]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = ["BN+ReLU", "GN+ReLU", "GN+SiLU", "EvoNormS0", "affine"]
    assert [row["competitor"] for row in rows] == names
    assert all(row["forward_us"] > 0 and row["fwd+bwd_us"] > 0 for row in rows)
    assert rows[0]["fwd+bwd_of_BN+ReLU"] == 1
    order, ticks = [], iter(range(100))
    runs = {key: {"forward": lambda key=key: order.append(key)} for key in "ab"}
    times = host.host_times(runs, 2, now=lambda: next(ticks))
    calls = host.UNTIMED + host.CALLS
    assert order == (["a"] * calls + ["b"] * calls) * (2 + host.WARMUP)
    assert times == {key: {"forward": 1e6 / host.CALLS} for key in "ab"}
    counter = iter(range(100))
    args = SimpleNamespace(shapes=[(1, 8, 2, 2)], layers=[], layout="contiguous", device="cpu")
    args.repeats, args.impl = 1, "auto"
    counted = host.run_host(args, lambda: next(counter))
    assert all(row["forward_launches"] == row["fwd+bwd_launches"] == 1 for row in counted)
    assert "fwd+bwd launches" in host.host_report(counted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to launch on")
def test_host_time_of_triton_without_a_gpu():
    """A stub is the driver of a process of its own, which says so and counts launches."""
    pytest.importorskip("triton")
    options = ["--impl", "triton", "--shapes", "1x64x4x4", "--layers", "EvoNormS0"]
    command = [sys.executable, TOOLS / "benchmark.py", "host", *options, "--repeats", "1", "--json"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "a stub is Triton's driver" in result.stderr
    rows = {row["competitor"]: row for row in json.loads(result.stdout)["rows"]}
    assert all(row["stubbed"] and row["impl"] == "triton" for row in rows.values())
    launches = {name: row["fwd+bwd_launches"] for name, row in rows.items()}
    assert launches == {"BN+ReLU": 0, "GN+ReLU": 0, "GN+SiLU": 0, "EvoNormS0": 2, "affine": 2}


def test_host_time_of_what_has_no_triton_kernel(main, capsys):
    assert main(["host", "--impl", "triton", "--layers", "EvoNormS0", "BN-ReLU"]) == 2
    assert "--impl triton --layers BN-ReLU: there is no Triton kernel" in capsys.readouterr().err


def test_host_time_of_triton_under_its_interpreter(main, capsys):
    triton = pytest.importorskip("evonorm_plugins.kernels.triton")
    if not triton.entry.INTERPRETED:
        pytest.skip("there is a GPU")
    assert main(["host", "--impl", "triton"]) == 1
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_ap_beside_another_tool(main, capsys, tmp_path):
    options = ("--images", 30, "--rounds", 1, "--folder", tmp_path / "set")
    assert main(["ap", *options, "--tools", "evonorm", "pycocotools", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["set"]["images"] == 30
    for task in ("bbox", "segm"):
        ours, theirs = sorted(
            (one for one in record["runs"] if one["task"] == task), key=lambda one: one["tool"]
        )
        assert ours["tool"] == "evonorm"
        assert ours["numbers"] == pytest.approx(theirs["numbers"], rel=0, abs=1e-12)
        assert theirs["numbers"][0] > 0.1
        assert min(ours["seconds"], ours["MiB"], theirs["seconds"], theirs["MiB"]) > 0.01
    assert main(["ap", *options, "--tools", "evonorm"]) == 0
    header, row = capsys.readouterr().out.splitlines()[-2:]
    assert header.split()[:4] == ["tool", "version", "boxes", "s"]
    assert row.split()[0] == "evonorm"
