"""Read JSON files of COCO's formats: parsed once, by whoever needs them."""

import json
import os
from typing import Any

from evonorm_plugins.errors import DataError, first

LISTS = ("images", "annotations", "categories")


def read_json(path: str | os.PathLike, kind: str = "file") -> Any:
    """Parsed JSON of a file.

    Args:
        kind: what messages call it, such as "annotation file".

    Raises:
        DataError: it cannot be read or is not JSON.
    """
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise DataError(f"{kind} {path}: {error.strerror}") from None
    except RecursionError:
        raise DataError(
            f"{kind} {path} ({os.path.getsize(path)} bytes) is nested far deeper than any file of "
            "this kind"
        ) from None
    except ValueError as error:  # bad JSON, and bytes that are no UTF-8
        raise DataError(
            f"{kind} {path} ({os.path.getsize(path)} bytes) is not valid JSON: {error}; was its "
            "download or copy cut off?"
        ) from None


def read_lists(
    content: Any, where: str, purpose: str, may_be_empty: tuple[str, ...] = ()
) -> list[list[Any]]:
    """``images``, ``annotations`` and ``categories`` of a parsed annotation file.

    Args:
        where: what messages call the file.
        purpose: what an empty list leaves nothing for: "learn", "evaluate".
        may_be_empty: names of lists that may be empty.

    Raises:
        DataError: it is no annotation file, or lacks a list.
    """
    if not isinstance(content, dict):
        raise DataError(
            f"{where} holds a {json_kind(content)}; ground truth is a JSON object with the lists "
            f"{', '.join(LISTS)} (a list is the format of results)"
        )
    for key in LISTS:
        if not isinstance(content.get(key), list):
            test_set = "; is it a test set, whose annotations are not public?"
            raise DataError(
                f"{where} has no list {key!r}; its keys are {first(content, 10)}"
                f"{test_set if key == 'annotations' else ''}"
            )
        if not content[key] and key not in may_be_empty:
            raise DataError(f"{where}: the list {key!r} is empty, there is nothing to {purpose}")
    return [content[key] for key in LISTS]


def json_kind(value: object) -> str:
    """What JSON calls the type of a parsed value."""
    kinds: dict[type, str] = {dict: "JSON object", list: "list", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)
