"""Runs that go on as if they had not been interrupted, in float32 and in bfloat16."""

import itertools
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import build_batch_data_loader
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.samplers import TrainingSampler

from evonorm_plugins.integrations.detectron2 import train
from evonorm_plugins.integrations.detectron2.continuation import skip_batches
from evonorm_plugins.integrations.detectron2.solver import align_momentum, fused
from tests.integrations.detectron2.small_sets import write_coco

CONFIG = (
    Path(__file__).parents[3] / "detectron_configs/quick/mask_rcnn_R_18_FPN_EvoNormS0_shapes.yaml"
)
OPTIONS = (
    "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "MODEL.ROI_HEADS.NUM_CLASSES",
    1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.STEPS", "()",
    "INPUT.MIN_SIZE_TRAIN", "(48,64)", "INPUT.MIN_SIZE_TEST", 64, "DATASETS.TEST", "()",
    "SOLVER.CHECKPOINT_PERIOD", 2,
)  # fmt: skip


@pytest.fixture
def arguments(tmp_path):
    """``arguments(folder of the run, *options)``"""
    annotations, images = write_coco(tmp_path / "boxes")
    data = ["--train-json", str(annotations), "--train-images", str(images)]

    def arguments(out, *options):
        options = (*OPTIONS, "OUTPUT_DIR", out, *options)
        return ["--config-file", str(CONFIG), *data, *map(str, options)]

    yield arguments
    if "evonorm_train" in DatasetCatalog.list():
        DatasetCatalog.remove("evonorm_train")
        MetadataCatalog.remove("evonorm_train")


def losses_of(run):
    lines = [line.split(",") for line in (run / "steps.csv").read_text().splitlines()[1:]]
    return {int(iteration): float(loss) for iteration, loss, _ in lines}


@pytest.mark.parametrize("amp", [False, True])
def test_a_resumed_run_has_the_losses_of_one_that_was_not_interrupted(arguments, tmp_path, amp):
    whole, other = tmp_path / "whole", tmp_path / "other"
    options = ("SOLVER.MAX_ITER", 5, "SOLVER.AMP.ENABLED", amp)
    assert train.main(arguments(whole, *options)) == 0
    # As if it had been killed after its first checkpoint.
    other.mkdir()
    shutil.copy(whole / "model_0000001.pth", other)
    (other / "last_checkpoint").write_text("model_0000001.pth")
    assert train.main(["--resume", *arguments(other, *options)]) == 0
    expected = losses_of(whole)
    assert losses_of(other) == pytest.approx({k: expected[k] for k in (2, 3, 4)}, rel=1e-5)
    assert len(set(expected.values())) == 5


def test_in_bfloat16_the_weights_stay_in_float32(arguments, tmp_path):
    out = tmp_path / "out"
    options = ("SOLVER.MAX_ITER", 2, "SOLVER.AMP.ENABLED", "True")
    assert train.main(arguments(out, *options)) == 0
    saved = torch.load(out / "model_final.pth", weights_only=True)["model"]
    assert {v.dtype for v in saved.values() if v.is_floating_point()} == {torch.float32}
    assert train.main(arguments(tmp_path / "fp32", *options[:2])) == 0
    one, other = losses_of(out), losses_of(tmp_path / "fp32")
    assert one[0] == pytest.approx(other[0], rel=0.03)
    assert one[0] != other[0]


def test_sigterm_saves_and_ends_the_run(fork, arguments, tmp_path):
    out = tmp_path / "out"
    options = ("SOLVER.MAX_ITER", 10_000, "SOLVER.CHECKPOINT_PERIOD", 5000)
    process = fork(train.main, arguments(out, *options))
    deadline = time.monotonic() + 120
    while not (out / "steps.csv").is_file() or len(losses_of(out)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    last = max(losses_of(out))
    ends = f"error: stopped by SIGTERM after iteration {last}; --resume goes on"
    assert err.splitlines()[-1] == ends
    assert "Traceback" not in err
    assert (out / "last_checkpoint").read_text() == f"model_{last:07d}.pth"


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("steps", [1, 7])
def test_batches_behind_those_that_were_seen(grouped, steps):
    records = [{"width": 1 + k % 3, "height": 2, "number": k} for k in range(11)]
    read = []

    def loader():
        mapped = MapDataset(DatasetFromList(records), lambda r: read.append(r["number"]) or r)
        sampler = TrainingSampler(len(records), seed=3)
        return build_batch_data_loader(mapped, sampler, 3, aspect_ratio_grouping=grouped)

    def numbers(batches, count):
        return [[r["number"] for r in batch] for batch in itertools.islice(batches, count)]

    expected = numbers(loader(), steps + 9)[steps:]
    read.clear()
    rest = loader()
    assert skip_batches(rest, steps)
    assert numbers(rest, 9) == expected
    assert len(read) <= 9 * 3 + 2 * 2  # nothing is read to be skipped


def test_momentum_of_another_layout_is_laid_out_again():
    momentum = torch.arange(108.0).view(4, 3, 3, 3)
    weight = torch.nn.Parameter(torch.zeros(4, 3, 3, 3).to(memory_format=torch.channels_last))
    optimizer = fused(torch.optim.SGD([weight], 0.1, momentum=0.9))
    saved = optimizer.state_dict()
    optimizer.load_state_dict({**saved, "state": {0: {"momentum_buffer": momentum}}})
    align_momentum(optimizer)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert torch.allclose(weight, -0.1 * (0.9 * momentum + 1), atol=1e-5)
