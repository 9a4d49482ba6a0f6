"""What training and scoring both ask of the entries of a COCO file.

Every check looks at all entries and raises a DataError that names the file, says how many are wrong
and shows the first of them. There may be a million: whether all are good is found out for whole
columns at once, and only where that is in doubt one entry after the other.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from evonorm_plugins.coco.rle import first_bad_rle
from evonorm_plugins.coco.shapes import are_boxes, are_masks, is_box, is_mask, is_size
from evonorm_plugins.errors import DataError, first, shown

_LISTED_IN = {"image_id": "images", "category_id": "categories"}


class Value(NamedTuple):
    """What a key must hold, as text and as a test of a value.

    ``all_fit`` is a faster test of a whole column, which may take good values for bad.
    """

    text: str
    fits: Callable[[Any], bool]
    all_fit: Callable[[list], bool]


def is_id(value: object) -> bool:
    return isinstance(value, int | str) or (isinstance(value, float) and value.is_integer())


def are_of(*types: type) -> Callable[[list], bool]:
    """A test whether a column holds these types alone."""
    return lambda column: set(types).issuperset(map(type, column))


ID = Value("a whole number or a text", is_id, are_of(int, str))


def check_values(entries: list, kind: str, where: str, values: dict[str, Value]) -> None:
    """Every entry is an object and holds what it must.

    Args:
        kind: what messages call an entry: "image", "annotation" ...
        values: ``{key: Value}``.
    """
    if not are_of(dict)(entries):
        for k, entry in enumerate(entries, 1):
            if not isinstance(entry, dict):
                raise DataError(f"{where}: {kind} number {k} is {shown(entry)}, not an object")
    for key, value in values.items():
        column = [entry.get(key) for entry in entries]
        if value.all_fit(column):
            continue
        bad = [k for k, found in enumerate(column) if not value.fits(found)]
        if bad:
            entry = entries[bad[0]]
            found = f"is {shown(entry[key])}" if key in entry else "is missing"
            with_id = key != "id" and "id" in entry
            named = f"with id {entry['id']!r}" if with_id else f"number {bad[0] + 1}"
            raise DataError(
                f"{where}: {key!r} {found} in the {kind} {named}, and wrong in {len(bad)} of "
                f"{len(entries)}; it must be {value.text}"
            )


def check_ids(entries: list[dict], kind: str, where: str) -> None:
    """Ids occur once, and all are numbers or all texts, so that they can be ordered."""
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) == len(ids) and len(set(map(type, ids))) < 2:
        return
    twice = [value for value, n in Counter(ids).items() if n > 1]
    if twice:
        raise DataError(f"{where}: {len(twice)} {kind} ids occur more than once: {first(twice)}")
    if len({isinstance(value, str) for value in ids}) > 1:
        text = next(value for value in ids if isinstance(value, str))
        raise DataError(f"{where}: some {kind} ids are numbers and some are texts, as {text!r}")


def check_references(
    entries: list[dict], kind: str, where: str, key: str, known: Iterable, known_from: str = ""
) -> None:
    """The ids under ``key`` are listed.

    Args:
        known: the ids that are.
        known_from: what messages call the file that lists them, if it is another one.
    """
    known, column = dict.fromkeys(known), [entry.get(key) for entry in entries]
    if ID.all_fit(column) and known.keys() >= set(column):
        return
    lost = [value for value in column if not _is_known(value, known)]
    if lost:
        # repr tells the text '7' from the number 7.
        values = list(dict.fromkeys(map(shown, lost)))
        listed = f"{_LISTED_IN[key]!r}{known_from and f' of {known_from}'}"
        raise DataError(
            f"{where}: {len(lost)} of {len(entries)} {kind}s have {key}s that {listed} does not "
            f"list: {first(values)} ({_LISTED_IN[key]!r} lists {first(map(repr, known))})"
        )


def _is_known(value: Any, known: dict) -> bool:
    return is_id(value) and value in known


def check_boxes(entries: list[dict], where: str, *, optional: bool = False) -> None:
    """Boxes are those of COCO.

    Args:
        optional: whether there may be none.
    """
    boxes = [entry.get("bbox") for entry in entries]
    if are_boxes([box for box in boxes if box not in (None, [])] if optional else boxes):
        return
    bad = [
        f"{shown(e.get('bbox'))} ({_name(k, e)})"
        for k, e in enumerate(entries)
        if not (is_box(e.get("bbox")) or (optional and e.get("bbox") in (None, [])))
    ]
    if bad:
        raise DataError(
            f"{where}: {len(bad)} of {len(entries)} boxes are not 4 finite numbers x, y, width, "
            f"height in pixels with no negative size: {first(bad)}"
        )


def check_masks(
    entries: list[dict],
    kind: str,
    where: str,
    sizes: dict,
    *,
    every_polygon: bool = True,
    advice: str = "",
) -> None:
    """Masks are polygons, or RLE of their image's size whose runs fill it.

    Args:
        sizes: ``{image_id: (height, width)}``.
        every_polygon: whether one good polygon among others is not enough.
        advice: added where there are no masks.
    """
    masks = [entry.get("segmentation") for entry in entries]
    bad = []
    if not are_masks(masks):
        bad = [k for k, mask in enumerate(masks) if not is_mask(mask, every_polygon=every_polygon)]
    if bad:
        raise DataError(
            f"{where}: {len(bad)} of {len(entries)} {kind}s have no 'segmentation' (it must be "
            "polygons of 3 or more points, or RLE with 'size' and 'counts'): "
            f"{first([_name(k, entries[k]) for k in bad])}; the first is {shown(masks[bad[0]])}"
            f"{advice}"
        )
    sizeless = {image for image, size in sizes.items() if not is_size(size)}
    for k, (entry, mask) in enumerate(zip(entries, masks, strict=True)):
        image = entry["image_id"]
        if image in sizeless:
            height, width = sizes[image]
            raise DataError(
                f"{where}: the {kind} {_name(k, entry)} has a mask, but its image has height "
                f"{height!r} and width {width!r}"
            )
        if isinstance(mask, dict) and tuple(mask["size"]) != sizes[image]:
            raise DataError(
                f"{where}: the {kind} {_name(k, entry)} has a mask of (height, width) "
                f"{mask['size']}, its image is {list(sizes[image])}"
            )
    _check_run_lengths(entries, masks, kind, where)


def _check_run_lengths(entries: list[dict], masks: list, kind: str, where: str) -> None:
    compressed = [
        k for k, m in enumerate(masks) if isinstance(m, dict) and isinstance(m["counts"], str)
    ]
    sizes = [masks[k]["size"] for k in compressed]
    bad = first_bad_rle(
        [masks[k]["counts"] for k in compressed], [height * width for height, width in sizes]
    )
    if bad is not None:
        k = compressed[bad]
        raise DataError(
            f"{where}: the {kind} {_name(k, entries[k])} has run lengths that do not make a mask "
            f"of (height, width) {masks[k]['size']}: {shown(masks[k]['counts'])}"
        )


def _name(k: int, entry: dict) -> str:
    return f"id {entry['id']!r}" if "id" in entry else f"number {k + 1}"
