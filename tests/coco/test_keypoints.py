"""Keypoints of a COCO file; what is refused of them is tested with the training script."""

import pytest

from evonorm_plugins.coco.keypoints import check_keypoints
from evonorm_plugins.errors import DataError


def content(names, **changes):
    values = [3, 4, 2] * len(names) if isinstance(names, list) else []
    entry = {"id": 1, "iscrowd": 0, "keypoints": values, "num_keypoints": len(values) // 3}
    category = {"id": 1, "name": "person", "keypoints": names}
    return {"categories": [category, {"id": 2, "name": "ball"}], "annotations": [entry | changes]}


def test_left_and_right_change_places_in_a_mirror():
    names = ["nose", "left_eye", "right_eye", "kneeLeft", "kneeRight", "left_thumb", "right wing"]
    found = check_keypoints(content(names), "set.json")
    assert found.names == names
    assert found.flip_map == [("left_eye", "right_eye"), ("kneeLeft", "kneeRight")]


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        ("nose", {}, "set.json: 'keypoints' of the category 'person' must be names"),
        (["nose", "nose"], {}, "two keypoints of the category 'person' have one name"),
        (["nose"], {"keypoints": [1, 2, 3]}, "1 annotations have no 'keypoints'"),
        (["nose"], {"keypoints": [1, None, 2]}, "1 annotations have no 'keypoints'"),
    ],
)
def test_what_is_refused(names, changes, said):
    with pytest.raises(DataError) as caught:
        check_keypoints(content(names, **changes), "set.json")
    assert said in str(caught.value)
