"""Keypoints of a COCO file: their names, and which of them change places in a mirror."""

import re
from typing import Any, NamedTuple

from evonorm_plugins.coco.shapes import is_number
from evonorm_plugins.errors import DataError, first

_SIDES = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}


class Keypoints(NamedTuple):
    """Names in the order of the file, and pairs (left, right) of names."""

    names: list[str]
    flip_map: list[tuple[str, str]]


def check_keypoints(content: dict[str, Any], where: str) -> Keypoints:
    """Check the keypoints of an annotation file that :func:`check_coco` has checked.

    Args:
        content: the file, parsed.
        where: what messages call it.

    Returns:
        Keypoints: those of the categories. ``left_x`` and ``right_x`` are a pair.

    Raises:
        DataError: no category names keypoints, two name different ones, an annotation has
            another number of them, or none is visible.
    """
    names = _names(content["categories"], where)
    expected = f"x, y, visibility (0, 1 or 2) of each of the {len(names)} keypoints"
    wrong = [a["id"] for a in content["annotations"] if not _is_right(a, len(names))]
    if wrong:
        raise DataError(
            f"{where}: {len(wrong)} annotations have no 'keypoints' ({expected}) with the number "
            f"of those that are labelled as 'num_keypoints': ids {first(wrong)}"
        )
    if not any(any(a["keypoints"][2::3]) for a in content["annotations"] if not a["iscrowd"]):
        raise DataError(f"{where}: no keypoint of any annotation is visible, nothing can be learnt")
    return Keypoints(names, _pairs(names))


def _names(categories: list[dict], where: str) -> list[str]:
    named = {c["name"]: c["keypoints"] for c in categories if c.get("keypoints")}
    if not named:
        raise DataError(
            f"{where}: no category names its 'keypoints', which a model with MODEL.KEYPOINT_ON "
            "learns; is it the file of instances, not that of keypoints?"
        )
    for category, names in named.items():
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise DataError(f"{where}: 'keypoints' of the category {category!r} must be names")
        if len(set(names)) < len(names):
            raise DataError(f"{where}: two keypoints of the category {category!r} have one name")
    (one, names), *others = named.items()
    for other, different in others:
        if different != names:
            raise DataError(
                f"{where}: the categories {one!r} and {other!r} have different keypoints; one head "
                "learns one list"
            )
    return names


def _is_right(annotation: dict, count: int) -> bool:
    values = annotation.get("keypoints")
    if not isinstance(values, list) or len(values) != 3 * count:
        return False
    if not all(is_number(v) for v in values) or any(v not in (0, 1, 2) for v in values[2::3]):
        return False
    labelled = annotation.get("num_keypoints")
    return isinstance(labelled, int) and bool(labelled) == any(values[2::3])


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for name in names:
        other = re.sub("|".join(_SIDES), lambda match: _SIDES[match[0]], name)
        if other != name and other in names:
            pairs.append((name, other))
    return pairs
