"""Runs of two and three processes on CPUs, as Detectron2's launch starts them.

Here it forks them from one that has imported everything: a run takes seconds.
"""

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from evonorm_plugins.errors import RunError, run_command
from evonorm_plugins.files import replacing
from evonorm_plugins.integrations.detectron2 import processes, train
from tests import forked
from tests.conftest import load_tool

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "detectron_configs/quick/mask_rcnn_R_18_FPN_EvoNormS0_shapes.yaml"
LAZY = Path(__file__).parent / "small_config.py"
PARTS = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
FAST = (
    "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "SEED", 1,
    "MODEL.ROI_BOX_HEAD.NUM_CONV", 2, "MODEL.ROI_BOX_HEAD.FC_DIM", 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.ROI_MASK_HEAD.NUM_CONV", 2,
    "SOLVER.IMS_PER_BATCH", 6, "SOLVER.STEPS", "()", "SOLVER.BASE_LR", 0.01,
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", 64, "DATALOADER.NUM_WORKERS", 0,
    "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64, "INPUT.RANDOM_FLIP", "none",
)  # fmt: skip
# Every anchor is sampled, and every one becomes a region: no sample is drawn, and the means of two
# ranks are those of one process.
ALL_REGIONS = (
    "MODEL.MASK_ON", False, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 2000,
    "MODEL.RPN.POSITIVE_FRACTION", 1.0, "MODEL.RPN.NMS_THRESH", 1.1,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 2000, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 5000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 5000, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False,
)  # fmt: skip


def start_by(method, monkeypatch):
    start = functools.partial(torch.multiprocessing.start_processes, start_method=method)
    monkeypatch.setattr(torch.multiprocessing, "start_processes", start)


@pytest.fixture(autouse=True)
def forked_ranks(monkeypatch):
    forked.context()
    start_by("forkserver", monkeypatch)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make = load_tool("make_shapes_dataset").make_shapes_dataset
    return make(folder, train=12, val=4, size=64)


@pytest.fixture(autouse=True)
def unregister():
    yield
    forget_sets()


def forget_sets():
    for name in ("evonorm_train", "evonorm_val"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def run(ranks, shapes, *options, flags=(), config=CONFIG, splits=("train", "val")):
    """The exit status of a run in ``ranks`` processes."""
    sets = [
        x
        for split in splits
        for kind in ("json", "images")
        for x in (f"--{split}-{kind}", shapes[f"{split}_{kind}"])
    ]
    fast = FAST if config is CONFIG else ()
    command = ["--num-gpus", ranks, "--config-file", config, *flags, *sets, *fast, *options]
    status = train.main([str(x) for x in command])
    forget_sets()
    return status


def norm_options(norm):
    return [x for part in PARTS for x in (f"MODEL.{part}.NORM", norm)]


def final(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


def gradients(checkpoint):
    """Those of the first step, by parameter, with the decay of weights: SGD's momentum."""
    state = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    return [values["momentum_buffer"] for values in state.values()]


@pytest.mark.parametrize("norm", ["EvoNormS0", "SyncEvoNormB0"])
def test_one_step_of_two_ranks_is_that_of_one_process(norm, shapes, tmp_path):
    """Losses, gradients, and the moving variances of PreciseBN, which come after the step."""
    precise = ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2)
    options = (*ALL_REGIONS, *norm_options(norm), *precise, "SOLVER.IMS_PER_BATCH", 2)
    results = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        options = (*options, "OUTPUT_DIR", out, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()")
        assert run(ranks, shapes, *options, splits=["train"]) == 0
        results.append((final(out), float((out / "steps.csv").read_text().split(",")[-2])))
    (one, loss), (two, loss_of_two) = results
    assert loss_of_two == pytest.approx(loss, rel=1e-4)
    assert len(gradients(one)) > 50
    for alone, shared in zip(gradients(one), gradients(two), strict=True):
        assert (shared - alone).norm() <= 1e-3 * alone.norm()
    variances = [name for name in one["model"] if name.endswith("running_var")]
    assert bool(variances) == (norm != "EvoNormS0")
    used = [name for name in variances if f"{name.removesuffix('running_var')}v" in one["model"]]
    for name in used:
        torch.testing.assert_close(two["model"][name], one["model"][name], rtol=1e-3, atol=1e-5)
        assert not one["model"][name].eq(1).any()


def test_three_ranks_go_on_where_two_were(shapes, tmp_path):
    out = ("OUTPUT_DIR", tmp_path)
    assert run(2, shapes, *out, "SOLVER.MAX_ITER", 2) == 0
    before = json.loads((tmp_path / "results.json").read_text())
    assert set(before["ap_percent"]) == {"bbox", "segm"}
    assert run(3, shapes, *out, "SOLVER.MAX_ITER", 3, flags=["--resume"]) == 0
    assert "model_final.pth at iteration 2." in (tmp_path / "log.txt").read_text()
    assert final(tmp_path)["iteration"] == 2
    steps = (tmp_path / "steps.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in steps[1:]] == ["0", "1", "2"]

    # Four images among three ranks are evaluated as two do it.
    ap = json.loads((tmp_path / "results.json").read_text())["ap_percent"]["bbox"]["AP"]
    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path / "again")
    for value, status in ((ap, 0), (ap + 9, 1)):
        asked = ("TEST.EXPECTED_RESULTS", f"[['bbox', 'AP', {value}, 1e-9]]")
        assert run(2, shapes, *weights, *asked, flags=["--eval-only"]) == status


FAULTS = """
import os
import signal

from detectron2.data import DatasetMapper
from detectron2.utils import comm


class _Faulty(DatasetMapper):
    calls = 0

    def __call__(self, record):
        found = super().__call__(record)
        self.calls += 1
        if comm.get_rank() == 1:
            fault(found, self.calls)
        return found


dataloader.train.mapper._target_ = _Faulty
for _node in (model.backbone.bottom_up.stem, model.backbone.bottom_up.stages, model.backbone):
    _node.norm = "SyncEvoNormB0"
model.roi_heads.box_head.conv_norm = model.roi_heads.mask_head.conv_norm = "SyncEvoNormB0"
dataloader.train.total_batch_size = 2
train.checkpointer.period = 2
"""


@pytest.fixture
def run_faulty(shapes, tmp_path):
    """``run_faulty(code, *options)``: the exit status of two ranks, the second with a fault.

    ``code`` runs for every image that it reads: ``found`` is what the mapper gives, ``calls`` the
    number of images so far.
    """

    def run_faulty(code, *options):
        config = tmp_path / "faulty.py"
        fault = f"\n\ndef fault(found, calls):\n    {code}\n"
        config.write_text(LAZY.read_text() + FAULTS + fault)
        options = (f"train.output_dir={tmp_path / 'out'}", "train.seed=1", *options)
        return run(2, shapes, *options, flags=["--trust-config"], config=config)

    return run_faulty


def test_no_objects_on_one_rank(run_faulty, tmp_path):
    code = 'found["instances"] = found["instances"][:0]'
    assert run_faulty(code, "train.max_iter=2") == 0
    weights = final(tmp_path / "out")["model"]
    assert all(values.isfinite().all() for values in weights.values())
    moved = weights["roi_heads.mask_head.mask_fcn1.norm.running_var"]
    assert moved.ne(1).all()  # by the regions of the other rank
    assert (tmp_path / "out/predictions.png").is_file()


def test_a_loss_of_one_rank_that_is_not_finite(run_faulty, tmp_path, capsys):
    code = 'found["image"] = found["image"] * (float("nan") if calls == 3 else 1.0)'
    assert run_faulty(code, "train.max_iter=9") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert "is not finite at iteration 2 on rank 1: " in said
    assert "The first layer with a non-finite output is backbone.bottom_up.stem.conv1" in said
    assert [p.name for p in (tmp_path / "out").glob("*.pth")] == ["model_0000001.pth"]


def test_a_mistake_of_one_rank(run_faulty, capsys):
    assert run_faulty("raise MemoryError", "train.max_iter=9") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: there is not enough memory"


def test_a_rank_that_dies(run_faulty, shapes, tmp_path, capsys):
    code = "calls < 6 or os.kill(os.getpid(), signal.SIGKILL)"
    assert run_faulty(code, "train.max_iter=99") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: rank 1 of 2 was ended by SIGKILL, and so the others were; ")
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir() if path.suffix not in (".0", ".csv", ".json")}
    others = {"config.yaml", "config.yaml.pkl", "log.txt", "log.txt.rank1"}
    assert names - others == {"last_checkpoint", "model_0000001.pth", "model_0000003.pth"}
    for path in out.glob("*.pth"):
        assert torch.load(path, weights_only=True)["iteration"] == int(path.stem[-1])

    # One process goes on.
    options = (f"train.output_dir={out}", "train.max_iter=5")
    config, flags = tmp_path / "faulty.py", ["--resume", "--trust-config"]
    assert run(1, shapes, *options, flags=flags, config=config) == 0
    assert "model_0000003.pth at iteration 4." in (out / "log.txt").read_text()
    assert final(out)["iteration"] == 4


def write_while_another_dies(folder):
    if comm.get_rank() == 1:
        while not list(folder.iterdir()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    with replacing(folder / "checkpoint") as partial:
        partial.write_text("half")
        time.sleep(60)


def test_what_another_rank_was_writing_is_gone(tmp_path):
    args = train.parse_args(["--config-file", "unused", "--num-gpus", "2"])
    with pytest.raises(RunError, match="rank 1 of 2 was ended by SIGKILL"):
        processes.run_processes(write_while_another_dies, args, "cpu", tmp_path)
    assert not list(tmp_path.iterdir())


def test_processes_on_cpus_see_no_gpus(monkeypatch):
    """Those that see one would form a group of NCCL."""
    seen, name = [], "CUDA_VISIBLE_DEVICES"
    monkeypatch.setenv(name, "3")
    monkeypatch.setattr(processes, "launch", lambda *_, **__: seen.append(os.environ[name]))
    for ranks in (1, 2):
        args = train.parse_args(["--config-file", "unused", "--num-gpus", str(ranks)])
        assert processes.run_processes(wait, args, "cpu", None) == 0
    assert seen == ["3", ""]
    assert os.environ[name] == "3"


def wait(folder):
    (folder / f"{comm.get_rank()} {os.getpid()}").touch()
    time.sleep(60)


def waiting(arguments):
    folder, number = arguments
    # Shells let what they run in the background ignore it.
    in_background = int(number) != signal.SIGINT
    signal.signal(signal.SIGINT, signal.SIG_IGN if in_background else signal.default_int_handler)
    start_by("fork", pytest.MonkeyPatch())
    args = train.parse_args(["--config-file", "unused", "--num-gpus", "2"])
    return run_command(lambda: processes.run_processes(wait, args, "cpu", Path(folder)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_no_process(fork, tmp_path, number):
    run = fork(waiting, [tmp_path, str(int(number))])
    while len(list(tmp_path.iterdir())) < 2:
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(number)
    said = run.communicate()[1]
    if number == signal.SIGINT:
        assert said.splitlines()[-1] == "error: interrupted"
        assert run.returncode == 1
    ranks = [int(path.name.split()[1]) for path in tmp_path.iterdir()]
    latest = time.monotonic() + 40  # they would end by themselves after 60 seconds
    while any(is_running(rank) for rank in ranks):
        assert time.monotonic() < latest
        time.sleep(0.02)


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def one_dies():
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


def machine(arguments):
    start_by("fork", pytest.MonkeyPatch())
    args = train.parse_args(["--config-file", "unused", "--num-machines", "2", *arguments])
    return run_command(lambda: processes.run_processes(one_dies, args, "cpu"))


def test_a_rank_of_another_machine_that_dies(fork, tmp_path):
    url = f"file://{tmp_path / 'rendezvous'}"
    first, second = (
        fork(machine, ["--machine-rank", rank, "--dist-url", url]) for rank in range(2)
    )
    said = second.communicate()[1].splitlines()[-1]
    assert said.startswith("error: rank 1 of 2 was ended by SIGKILL")
    said = first.communicate()[1].splitlines()[-1]
    assert said.startswith("error: rank 0: another rank is gone: ")
    assert (first.returncode, second.returncode) == (1, 1)


@pytest.mark.parametrize(
    ("flags", "options", "said"),
    [
        (["--num-gpus", 4], (), "6 images a step cannot be split evenly among 4 processes"),
        (["--num-machines", 2], (), "--num-machines 2 needs --dist-url tcp://HOST:PORT"),
        ([], ("MODEL.DEVICE", "banana"), "MODEL.DEVICE banana: "),
        # A config for 3 processes, scaled to 2, has 4 images a step; 6 among 4 are none.
        ([], ("SOLVER.REFERENCE_WORLD_SIZE", 3, "MODEL.WEIGHTS", "gone"), "no checkpoint gone"),
        ([], ("SOLVER.REFERENCE_WORLD_SIZE", 4), "SOLVER.REFERENCE_WORLD_SIZE: Invalid"),
    ],
)
def test_processes_that_cannot_be(flags, options, said, shapes, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(2, shapes, "OUTPUT_DIR", out, *options, flags=flags) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
