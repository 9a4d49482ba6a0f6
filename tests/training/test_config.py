"""Options from files and strings: what is read, and one line for everything that cannot be."""

import dataclasses

import pytest

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.training.config import (
    build,
    check_choices,
    check_minimum,
    check_unchanged,
    read_overrides,
    read_values,
)


@dataclasses.dataclass
class Options:
    flag: bool = False
    count: int = 1
    rate: float = 0.5
    name: str = "a"
    sizes: list = dataclasses.field(default_factory=list)
    names: list[str] | None = None
    more: dict = dataclasses.field(default_factory=dict)
    limit: int | None = None
    seed: int = 0


def test_values_are_of_their_types(tmp_path):
    (tmp_path / "base.yaml").write_text("rate: 1e-4\nname: 7\nlimit: 5\n")
    (tmp_path / "a.yaml").write_text("_BASE_: base.yaml\nsizes: [1, 2.0]\nmore: {k: [1]}\n")
    values = read_values(tmp_path / "a.yaml", ["flag=true", "names=[x, 3]", "limit=null", "name="])
    assert build(Options, values) == Options(
        flag=True, rate=1e-4, name="", sizes=[1, 2], names=["x", "3"], more={"k": [1]}
    )


FILES = [
    (b"", "is empty"),
    (b"# nothing\n", "is empty"),
    (b"- 1\n- 2\n", "holds no keys, but [1, 2]"),
    (b"3\n", "holds no keys, but 3"),
    (b"norm: [1\n", "is not YAML: "),
    (b"name: \xff\xfe\n", "is not UTF-8 text"),
    (b"count: " + b"[" * 20_000, "is not YAML: it is nested too deeply"),
    (b"count: 2020-13-45\n", "is not YAML: "),
    (b"count: !!python/object/apply:os.system ['touch ran']\n", "is not YAML: "),
    (b"_BASE_: 3\n", "_BASE_=3 is not the name of a file"),
    (b"_BASE_: [base.yaml]\n", "_BASE_=['base.yaml'] is not the name of a file"),
    (b"_BASE_:\n", "_BASE_=None is not the name of a file"),
    (b"_BASE_: ''\n", "_BASE_='' is not the name of a file"),
    (b"_BASE_: none.yaml\n", "there is no config file none.yaml"),
    (b"_BASE_: .\n", "there is no config file ."),
    (b"_BASE_: a.yaml\n", "_BASE_ leads back to the file itself"),
]


@pytest.mark.parametrize(("content", "message"), FILES, ids=[m for _, m in FILES])
def test_files_that_are_no_configs(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_values("a.yaml")
    assert str(error.value).startswith("a.yaml")
    assert message in str(error.value)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        read_values("b.yaml")


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml' is no file and no class"):
        read_values(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        read_values(tmp_path)


@pytest.mark.parametrize("text", ["count", "=3", ""])
def test_strings_without_a_key(text):
    with pytest.raises(ConfigError, match="is not of the form key=value"):
        read_overrides([text])


@pytest.mark.parametrize("text", ["[1", "'", "2020-13-45", "!!python/name:os.system ''", "a: b: c"])
def test_strings_that_are_no_values(text):
    with pytest.raises(ConfigError, match="cannot read the value of"):
        read_overrides([f"count={text}"])


BOMB = "[&a [x,x,x,x,x,x,x,x,x]" + "".join(
    f",&{chr(98 + k)} [{','.join(['*' + chr(97 + k)] * 9)}]" for k in range(9)
)
VALUES = [
    ("count=many", "count='many' is not int"),
    ("count=1.5", "count=1.5 is not int"),
    ("count=true", "count=True is not int"),
    ("count=.inf", "count=inf is not int"),
    ("count=.nan", "count=nan is not int"),
    ("count=null", "count=None is not int"),
    (f"count={2**63}", "is not int"),
    (f"count={10**400}", "is not int"),
    ("rate=[1]", "rate=[1] is not float"),
    ("flag=1", "flag=1 is not bool"),
    ("name=[1]", "name=[1] is not str"),
    ("name=null", "name=None is not str"),
    ("name=off", "name=False is not str"),
    ("sizes=3", "sizes=3 is not list of integers"),
    ("sizes=[1.5]", "sizes=[1.5] is not list of integers"),
    ("sizes=ab", "sizes='ab' is not list of integers"),
    ("names=[[a]]", "is not list of names"),
    ("more=[[1, 2]]", "more=[[1, 2]] is not dict"),
    ("coun=3", "there is no option 'coun'; did you mean 'count'?"),
    ("zzz=3", "there is no option 'zzz'; known: flag, count"),
    (f"count={BOMB}]", "is not int"),
]


@pytest.mark.parametrize(("text", "message"), VALUES, ids=[t[:20] for t, _ in VALUES])
def test_values_of_another_type(text, message):
    with pytest.raises(ConfigError) as error:
        build(Options, read_overrides([text]))
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


def test_keys_that_are_no_text():
    with pytest.raises(ConfigError, match="there is no option 3; the name of one is text"):
        build(Options, {3: 4})


def check(options):
    check_minimum(options, {"count": 1, "rate": 0, "seed": 0, "limit": 1})
    check_choices(options, {"name": ["a", "c"]})


def test_ranges():
    for options, message in (
        (Options(count=0), "count=0 must be at least 1"),
        (Options(rate=float("nan")), "rate=nan must be at least 0"),
        (Options(rate=float("inf")), "rate=inf must be at least 0"),
        (Options(seed=-1), "seed=-1 must be at least 0"),
        (Options(seed=2**63), f"seed={2**63} must be from 0 to {2**63 - 1}"),
        (Options(name="b"), "name='b' is not one of a, c"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(options)


def test_what_a_checkpoint_was_trained_with():
    check_unchanged("x.pt", {"a": 1}, {"a": 1, "b": 2}, ["a", "b"])
    with pytest.raises(ConfigError, match=r"x\.pt was trained with a=1 \(now 3\): give the same"):
        check_unchanged("x.pt", {"a": 1}, {"a": 3}, ["a"])
