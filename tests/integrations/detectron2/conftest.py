"""A Mask R-CNN that is built in half a second and runs in a tenth."""

import datetime
import time
from pathlib import Path

import pytest
import torch

from tests import forked

CONFIGS = Path(__file__).parents[3] / "detectron_configs"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unregister():
    """Detectron2's sets after a test are those before it."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def small_cfg():
    """``make(norm, *options)``: the config of a small Mask R-CNN with that norm everywhere."""
    from detectron2.config import get_cfg

    import evonorm_plugins.integrations.detectron2  # noqa: F401

    def make(norm, *options):
        cfg = get_cfg()
        cfg.merge_from_file(str(CONFIGS / "Base-Mask-RCNN-FPN.yaml"))
        small = {
            "MODEL.DEVICE": "cpu",
            "MODEL.RESNETS.DEPTH": 18,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
            "MODEL.FPN.OUT_CHANNELS": 32,
            "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 2,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
            "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
            "MODEL.ROI_HEADS.NUM_CLASSES": 4,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
            "INPUT.MIN_SIZE_TEST": 64,
            "INPUT.MAX_SIZE_TEST": 64,
        }
        cfg.merge_from_list([x for pair in small.items() for x in pair])
        for part in ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
            cfg.MODEL[part].NORM = norm
        cfg.merge_from_list(list(options))
        return cfg

    return make


@pytest.fixture
def train_batch():
    """``make(images=1, size=64, objects=2)``: a batch as Detectron2's loader gives it."""
    from detectron2.structures import BitMasks, Boxes, Instances

    def make(images=1, size=64, objects=2):
        generator = torch.Generator().manual_seed(0)
        batch = []
        for k in range(images):
            instances = Instances((size, size))
            boxes = torch.tensor([[4.0, 6, 40, 44], [20, 12, 60, 50]])[:objects]
            masks = torch.zeros(objects, size, size, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] = True
            instances.gt_boxes = Boxes(boxes)
            instances.gt_classes = torch.arange(objects) % 4
            instances.gt_masks = BitMasks(masks)
            image = torch.randint(0, 256, (3, size, size), generator=generator).float()
            batch.append({"image": image, "instances": instances, "image_id": k + 1})
        return batch

    return make


@pytest.fixture
def draw_norms():
    """``draw_norms(model)``: the model with norms whose values are not those they start from."""
    from evonorm_plugins.layers import NormAct

    def draw(model):
        generator = torch.Generator().manual_seed(0)
        for layer in model.modules():
            if isinstance(layer, NormAct):
                for name, values in layer.state_dict().items():
                    if values.is_floating_point():
                        noise = torch.rand(values.shape, generator=generator)
                        values.add_(noise if name.endswith("running_var") else noise - 0.5)
        return model

    return draw


@pytest.fixture
def run_ranks(tmp_path):
    """``run_ranks(function, *args)``: what ``function(rank, *args)`` returns in two processes.

    They form a gloo group. A function of a test module; whatever hangs ends in an error.
    """

    def run(function, *args, timeout=180):
        ranks = 2
        forked.context()
        context = torch.multiprocessing.start_processes(
            _rank, (ranks, tmp_path, function, args), ranks, join=False, start_method="forkserver"
        )
        give_up = time.monotonic() + timeout
        try:
            while not context.join(max(0.1, give_up - time.monotonic())):
                assert time.monotonic() < give_up, f"the ranks have not ended in {timeout} s"
        finally:
            for process in context.processes:
                process.kill()
        return [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]

    return run


def _rank(rank, ranks, folder, function, args):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save(function(rank, *args), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
