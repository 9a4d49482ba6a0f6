"""Detections, their AP and the picture, with a model whose answers are known."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evonorm_plugins.cli.eval import main as evonorm_eval
from evonorm_plugins.integrations.torchvision.data import CocoSet
from evonorm_plugins.integrations.torchvision.evaluate import detect, evaluate, picture


class Oracle(nn.Module):
    """Finds every object of a set, with ``shift`` added to its label."""

    def __init__(self, coco, shift=0, score=0.9):
        super().__init__()
        self.coco, self.shift, self.score = coco, shift, score
        self.next = 0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        assert not self.training
        outputs = []
        for _ in images:
            target = self.coco.target(self.next)
            self.next += 1
            labels = (target["labels"] + self.shift - 1) % len(self.coco.categories) + 1
            outputs.append(
                {
                    "boxes": target["boxes"],
                    "labels": labels,
                    "scores": torch.full(labels.shape, self.score),
                    "masks": target["masks"][:, None].float(),
                }
            )
        return outputs


class Blind(nn.Linear):
    def forward(self, images):
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        return [{**nothing, "scores": torch.zeros(0)} for _ in images]


@pytest.fixture
def coco(shapes):
    return CocoSet(shapes["val_json"], shapes["val_images"], masks=True)


def test_what_finds_everything_has_100_percent(coco, tmp_path, shapes):
    model = Oracle(coco).train()
    found = detect(model, coco, batch=2)
    assert model.training
    results = evaluate(coco, found)
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert results[task]["AR100"] == pytest.approx(100)
        per_category = [v for k, v in results[task].items() if k.startswith("AP-")]
        assert len(per_category) == 4
        assert np.nanmin(per_category) == pytest.approx(100)
    # The same from the file of results.
    (tmp_path / "found.json").write_text(json.dumps(found))
    out = tmp_path / "ap.json"
    arguments = ["ap", "--gt", shapes["val_json"], "--dt", str(tmp_path / "found.json")]
    assert evonorm_eval([*arguments, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["ap_percent"]["segm"]["AP"] == pytest.approx(100)


def test_wrong_categories_have_0_percent(coco):
    results = evaluate(coco, detect(Oracle(coco, shift=1), coco))
    assert results["bbox"]["AP"] < 1
    assert results["segm"]["AP"] < 1


def test_a_model_that_finds_nothing(coco, tmp_path):
    found = detect(Blind(1, 1), coco)
    assert found == []
    assert evaluate(coco, found)["segm"]["AP"] == 0
    picture(coco, found, tmp_path / "p.png")


def test_what_is_drawn_on_the_right_is_as_on_the_left(coco, tmp_path):
    pictures = {}
    for score in (0.9, 0.4):
        picture(coco, detect(Oracle(coco, score=score), coco), tmp_path / "p.png", images=1)
        sheet = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
        # An image is 384 pixels wide, 16 from the border and 4 from its prediction.
        pictures[score] = sheet[40:424, 16:400], sheet[40:424, 404:788]
    left, right = pictures[0.9]
    # Labels differ by the score.
    assert (left == right).all(-1).mean() > 0.9
    left, right = pictures[0.4]
    assert (left == right).all(-1).mean() < 0.9
