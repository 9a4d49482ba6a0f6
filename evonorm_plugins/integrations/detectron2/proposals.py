"""Precomputed proposals: whether a config has them, read without running what their files hold."""

import pickle
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from evonorm_plugins.data.pickles import load_plain
from evonorm_plugins.errors import ConfigError, DataError, first, reason
from evonorm_plugins.integrations.detectron2.tasks import reading

_OLD_KEYS = {"indexes": "ids", "scores": "objectness_logits"}  # of Detectron, which came before


def check_proposals(cfg: CfgNode, *, training: bool, trust: bool = False) -> None:
    """Whether a model without a network for proposals has files of them, for every image.

    Args:
        cfg: names sets that are registered, whose files are there.
        training: whether it is to be trained, not evaluated alone.
        trust: read the files with Python's pickle, which runs the code that they hold.

    Raises:
        ConfigError: the keys do not go together.
        DataError: a file cannot be read, or lacks images of its set.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
            raise ConfigError(
                "MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals needs MODEL.LOAD_PROPOSALS True"
            )
        return
    for split in ("TRAIN", "TEST") if training else ("TEST",):
        names, files = cfg.DATASETS[split], cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
        if split == "TEST":
            files = files[: len(names)]  # Detectron2, too, reads no others
        if len(files) != len(names):
            raise ConfigError(
                f"MODEL.LOAD_PROPOSALS is True: DATASETS.PROPOSAL_FILES_{split} must name a file "
                f"for each of the {len(names)} of DATASETS.{split}, got {len(files)}"
            )
        for name, file in zip(names, files, strict=True):
            known = _images_of(file, trust)
            with reading(name):
                records = DatasetCatalog.get(name)
            missing = [r["image_id"] for r in records if str(r["image_id"]) not in known]
            if missing:
                raise DataError(
                    f"{file} has no proposals for {len(missing)} of {len(records)} images of the "
                    f"dataset {name}: ids {first(missing)}"
                )


def _images_of(file: str, trust: bool) -> set[str]:
    try:
        path = PathManager.get_local_path(file)
        found = PathManager.isfile(path)
    except Exception as error:  # of whatever protocol
        raise DataError(f"cannot fetch the proposals {file}: {reason(error)}") from None
    if not found:
        raise DataError(f"there is no file of proposals {file}")
    content = _content(path, trust)
    lists: list[Any] = [content.get(key) for key in ("ids", "boxes", "objectness_logits")]
    if any(not isinstance(values, list | np.ndarray) for values in lists):
        raise DataError(f"{file} holds no proposals: they are lists ids, boxes, objectness_logits")
    ids, boxes, scores = lists
    if not len(ids) == len(boxes) == len(scores):
        raise DataError(
            f"{file} has {len(ids)} ids, {len(boxes)} lists of boxes, {len(scores)} of logits"
        )
    for image, these, theirs in zip(ids, boxes, scores, strict=True):
        if np.shape(these) != (len(theirs), 4):
            raise DataError(
                f"{file}: the boxes of image {image} must be of the shape (number of logits, 4), "
                f"got {np.shape(these)} for {np.shape(theirs)}"
            )
    return {str(image) for image in ids}


def _content(path: str, trust: bool) -> dict[str, Any]:
    if trust:
        try:
            with open(path, "rb") as file:
                content = pickle.load(file, encoding="latin1")
        except Exception as error:  # whatever the file runs
            raise DataError(f"{path} cannot be read: {reason(error)}") from None
    else:
        try:
            content = load_plain(path)
        except DataError as error:
            raise DataError(
                f"{error}. Proposals are lists and arrays; anything else could run the code of "
                "whoever wrote it: if you trust the file, give --trust-weights"
            ) from None
    if not isinstance(content, dict):
        content = {}
    return {_OLD_KEYS.get(key, key): value for key, value in content.items()}
