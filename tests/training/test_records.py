"""What a run leaves to read, also after it was ended in the middle of a line."""

import json

import pytest
import torch
import yaml

from evonorm_plugins.errors import NoSpaceError
from evonorm_plugins.training.ranks import Ranks
from evonorm_plugins.training.records import Records, read_records


def records(folder, step=0, **options):
    return Records({"lr": 0.1}, folder, step, 10, progress=False, **options)


def test_lines_of_steps_that_are_taken_again_are_dropped(tmp_path):
    first = records(tmp_path)
    for step in (1, 2, 3):
        first.line(step, {"loss": float(step), "name": "a"})
    first.close()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"lr": 0.1}
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed here
    again = records(tmp_path, step=2)
    again.line(3, {"loss": float("nan")})
    again.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert read_records(tmp_path / "metrics.jsonl")[2]["loss"] is None
    assert read_records(tmp_path / "none") == []


def test_means_over_steps(tmp_path):
    some = records(tmp_path)
    for value in (1.0, 3.0):
        some.add(("loss", "twice"), torch.tensor([value, 2 * value]))
    assert some.means(Ranks("cpu")) == {"loss": 2.0, "twice": 4.0}
    some.add(("loss",), torch.tensor([5.0]))
    assert some.means(Ranks("cpu")) == {"loss": 5.0}
    some.close()


def test_a_full_disk_is_named(tmp_path):
    some = records(tmp_path)
    some.lines.close()
    some.lines = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(NoSpaceError, match=r"^no space left to write /dev/full$"):
        some.line(1, {"loss": 1.0})
    some.close()


def test_other_ranks_write_nothing(tmp_path):
    other = records(tmp_path / "new", is_main=False)
    other.line(1, {"loss": 1.0})
    other.say("hello")
    other.close()
    assert not (tmp_path / "new").exists()
