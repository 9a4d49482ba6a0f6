"""Images and targets of a COCO-format set, as torchvision's detectors take them."""

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from evonorm_plugins.coco.read import read_json
from evonorm_plugins.coco.score import coco_data
from evonorm_plugins.coco.shapes import decoded_mask
from evonorm_plugins.coco.train import check_coco
from evonorm_plugins.data.decode import decode
from evonorm_plugins.data.loader import start_worker
from evonorm_plugins.errors import DataError, InputError

_SMALLEST = 0.01  # pixels


class CocoSet:
    """A checked set: its images, and their objects with labels that count from 1.

    Args:
        json_file, image_root: annotations and the folder of their images.
        masks: whether every object needs a mask.
        every_category: whether a category without instances is an error.

    Attributes:
        content: the parsed annotations.
        images: entries of ``images`` in order of id.
        category_ids, categories: ids and names by label, without the background.
        objects: for each image its objects, of the keys ``category_id`` (the label), ``bbox``,
            ``segmentation`` and ``iscrowd``.

    Raises:
        DataError, InputError: the set cannot be used.
    """

    def __init__(
        self,
        json_file: str | os.PathLike,
        image_root: str | os.PathLike,
        *,
        masks: bool,
        every_category: bool = False,
    ) -> None:
        self.json_file, self.image_root, self.masks = str(json_file), str(image_root), masks
        self.content = read_json(json_file, "annotation file")
        options = {"masks": masks, "every_category": every_category, "content": self.content}
        check_coco(json_file, image_root, **options)
        data = coco_data(self.content, [], masks=masks, names=(self.json_file, "nothing"))
        self.images = sorted(self.content["images"], key=lambda image: image["id"])
        self.category_ids = sorted(c["id"] for c in self.content["categories"])
        self.categories = data.categories
        self.objects: list[list[dict]] = [[] for _ in self.images]
        for entry in data.objects.rows():
            self.objects[entry["image_id"] - 1].append(entry)

    def read(self, k: int) -> torch.Tensor:
        """Image ``k`` as uint8 (3, H, W), RGB.

        Raises:
            InputError: it cannot be read, or is not of the size that the annotations give.
        """
        entry = self.images[k]
        path = os.path.join(self.image_root, entry["file_name"])
        try:
            with open(path, "rb") as file:
                image = decode(path, file.read())
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        size = entry["height"], entry["width"]
        if tuple(image.shape[1:]) != size:
            raise DataError(
                f"{path} is {image.shape[1]} x {image.shape[2]} (height x width) pixels, "
                f"{self.json_file} says {size[0]} x {size[1]}"
            )
        return image

    def target(self, k: int) -> dict[str, torch.Tensor]:
        """``boxes`` (N, 4) as x0, y0, x1, y1, ``labels`` (N,) and ``masks`` (N, H, W) of image k.

        Crowds and boxes of size 0 are left out.
        """
        objects = [o for o in self.objects[k] if is_trained_on(o)]
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": boxes,
            "labels": torch.tensor([o["category_id"] for o in objects], dtype=torch.int64),
        }
        if self.masks:
            size = self.images[k]["height"], self.images[k]["width"]
            masks = [decoded_mask(o["segmentation"], size) for o in objects]
            target["masks"] = torch.from_numpy(np.array(masks, np.uint8).reshape(-1, *size))
        return target


def is_trained_on(entry: dict) -> bool:
    # Smaller ones may have no size in float32, which torchvision refuses.
    return not entry["iscrowd"] and min(entry["bbox"][2:]) >= _SMALLEST


class TrainingImages(Dataset):
    """``(image, target, id)`` by position in an endless sequence that the seed determines.

    All images with instances, in a new order each time around; half of them mirrored.
    """

    def __init__(self, coco: CocoSet, seed: int, flip: bool) -> None:
        self.coco, self.seed, self.flip = coco, seed, flip
        self.usable = [k for k, o in enumerate(coco.objects) if any(map(is_trained_on, o))]
        self._time_around: int | None = None

    def __getitem__(self, position: int) -> tuple | InputError:
        time_around, place = divmod(position, len(self.usable))
        if time_around != self._time_around:
            generator = np.random.default_rng((self.seed, 0, time_around))
            self._order = generator.permutation(self.usable)
            self._time_around = time_around
        k = self._order[place]
        try:
            image, target = self.coco.read(k).float() / 255, self.coco.target(k)
        except InputError as error:  # raised where it is not wrapped in a worker's traceback
            return error
        if self.flip and np.random.default_rng((self.seed, 1, position)).random() < 0.5:
            image, target = mirrored(image, target)
        return image, target, self.coco.images[k]["id"]


class EvaluationImages(Dataset):
    """``(image, index)`` in order of id."""

    def __init__(self, coco: CocoSet) -> None:
        self.coco = coco

    def __len__(self) -> int:
        return len(self.coco.images)

    def __getitem__(self, k: int) -> tuple | InputError:
        try:
            return self.coco.read(k).float() / 255, k
        except InputError as error:
            return error


def mirrored(image: torch.Tensor, target: dict) -> tuple[torch.Tensor, dict]:
    """Image and target, left and right exchanged."""
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    target = {**target, "boxes": boxes}
    if "masks" in target:
        target["masks"] = target["masks"].flip(-1)
    return image.flip(-1), target


def batches(images: Dataset, positions: range, batch: int, workers: int) -> Iterator[list]:
    """Lists of ``batch`` entries of ``images``.

    Raises:
        InputError: an image cannot be read.
    """
    loader = DataLoader(
        images,
        batch,
        sampler=positions,
        num_workers=workers,
        collate_fn=_as_they_are,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # the global one is left alone, for runs that are resumed
    )
    for entries in loader:
        for entry in entries:
            if isinstance(entry, Exception):
                raise entry
        yield entries


def _as_they_are(entries: list) -> list:
    return entries
