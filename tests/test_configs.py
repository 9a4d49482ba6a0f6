"""The configs of the package, by name and by path."""

import re
from pathlib import Path

import pytest

from evonorm_plugins.configs import KINDS, find_config, list_configs
from evonorm_plugins.errors import ConfigError

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "classification": "configs",
    "sweep": "configs",
    "search": "configs/search",
    "gan": "biggan/configs",
    "detectron2": "detectron_configs",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_listed_name_is_found(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nowhere near the files
    names = list_configs(kind)
    assert names == sorted(names)
    for name in names:
        path = ROOT / FOLDERS[kind] / f"{name}.yaml"
        assert path.is_file()
        assert not path.name.startswith("Base-")
        as_in_a_checkout = f"{FOLDERS[kind]}/{name}.yaml"
        for given in (name, f"{name}.yaml", as_in_a_checkout, Path(as_in_a_checkout)):
            assert find_config(given, kind) == path


def test_every_config_is_listed_once():
    listed = [ROOT / FOLDERS[kind] / f"{n}.yaml" for kind in KINDS for n in list_configs(kind)]
    files = {p for folder in set(FOLDERS.values()) for p in (ROOT / folder).glob("**/*.yaml")}
    assert sorted(listed) == sorted(p for p in files if not p.name.startswith("Base-"))


def test_a_file_comes_before_a_name_and_a_folder_behind_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits32_EvoNormS0").mkdir()  # as an output folder may be called
    found = ROOT / "biggan/configs/digits32_EvoNormS0.yaml"
    assert find_config("digits32_EvoNormS0", "gan") == found
    Path("digits32_EvoNormS0.yaml").write_text("depth: 1")
    own = find_config("digits32_EvoNormS0.yaml", "gan")
    assert own.samefile(tmp_path / "digits32_EvoNormS0.yaml")
    assert find_config("digits32_EvoNormS0", "gan") == found


def test_the_last_part_of_a_name_is_enough_where_one_ends_in_it():
    name = "mask_rcnn_R_18_FPN_EvoNormS0_shapes"
    assert find_config(name, "detectron2") == ROOT / f"detectron_configs/quick/{name}.yaml"
    folders = ", ".join(rf"{f}/mask_\w+_GN" for f in ("nuclei", "paper", "stock"))
    both = f"'mask_rcnn_R_50_FPN_GN' may be any of {folders}:"
    with pytest.raises(ConfigError, match=both):
        find_config("mask_rcnn_R_50_FPN_GN", "detectron2")


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ("digits32_EvoNormSO", "gan", "did you mean digits32_EvoNormS0 or "),
        ("mask_rcnn_r_101_fpn_gn", "detectron2", "_R_101_FPN_GN"),
        ("configs/digits32_EvoNormS0.yam", "gan", "did you mean digits32_EvoNormS0"),
        ("zzz", "search", "known: B, B_paper, S, S_paper, quick, random, small"),
        ("", "search", "known: B, B_paper, S, S_paper, quick, random, small"),
        ("a\0b", "search", r"'a\x00b'"),
        ("B" * 5000, "search", "known: B, B_paper, S, S_paper, quick, random, small"),
        ("../B", "search", "'../B' is no file and no search config"),
        ("/tmp", "search", "'/tmp' is a folder, not a file"),
        (
            "mini_inception_sweep",
            "classification",
            "no file and no classification config",
        ),
    ],
)
def test_what_is_no_config_is_refused(given, kind, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as refused:
        find_config(given, kind)
    assert "\n" not in str(refused.value)
