"""Objects and detections of a COCO set as columns, in place of a dict for each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import numpy as np

_NO_BOX = [0.0] * 4


@dataclass
class Columns:
    """N objects, or N detections.

    ``ids`` (N,) int64; ``images`` and ``categories`` (N,) int64, the ranks of their ids, from 1;
    ``boxes`` (N, 4) float64, x, y, width and height in pixels, zeros where there is none; ``areas``
    (N,) float64 in pixels; ``crowds`` (N,) bool; ``scores`` (N,) float64 of detections, None of
    objects; ``masks`` N polygons or RLE, None where masks are not compared.
    """

    ids: np.ndarray
    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    scores: np.ndarray | None = None
    masks: list | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def of_category(self, category: int) -> "Columns":
        """Those of one category."""
        some = np.flatnonzero(self.categories == category)
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen = {k: v[some] for k, v in columns.items() if isinstance(v, np.ndarray)}
        masks = None if self.masks is None else [self.masks[k] for k in some]
        return replace(self, **chosen, masks=masks)

    def rows(self) -> list[dict[str, Any]]:
        """The same as entries with the keys of COCO, made anew in each call."""
        columns: dict[str, Sequence] = {
            "id": self.ids.tolist(),
            "image_id": self.images.tolist(),
            "category_id": self.categories.tolist(),
            "bbox": self.boxes.tolist(),
            "area": self.areas.tolist(),
            "iscrowd": self.crowds.astype(int).tolist(),
        }
        if self.scores is not None:
            columns["score"] = self.scores.tolist()
        if self.masks is not None:
            columns["segmentation"] = self.masks
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def box_column(entries: list[dict]) -> np.ndarray:
    """``bbox`` of checked entries, (N, 4) float64; zeros where there is none."""
    boxes = [entry.get("bbox") or _NO_BOX for entry in entries]
    return np.fromiter(chain.from_iterable(boxes), float, 4 * len(boxes)).reshape(-1, 4)


def rank_column(entries: list[dict], key: str, ranks: dict) -> np.ndarray:
    """Ranks of the ids under ``key`` of checked entries, (N,) int64."""
    return np.fromiter((ranks[entry[key]] for entry in entries), np.int64, len(entries))
