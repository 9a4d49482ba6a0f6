"""`evonorm search report`: one page of HTML with what a search found."""

import re
import sqlite3
from contextlib import closing
from html.parser import HTMLParser

import pytest

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN
from evonorm_plugins.search import report
from evonorm_plugins.search.store import Candidate, Store

pytest.importorskip("matplotlib")

CONFIG = {"space": "B", "anchors": ["a", "b"], "filters": ["trial", "quality"], "data": "<c>.zip"}
# Name of a layer, parent, scores; None is refused by the quality filter.
CANDIDATES = [
    ("EvoNormS1", None, (0.5, 0.3)),
    ("EvoNormS2", 0, (0.4, 0.2)),
    ("BN-ReLU", 0, None),
    ("EvoNormS0", 0, (0.7, 0.4)),
    ("EvoNormB0", 3, (0.9, 0.1)),
    ("Candidate-B4", 3, (0.8, 0.5)),
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a <b> & c.sqlite"
    with Store.create(path, CONFIG) as store:
        for number, (name, parent, scores) in enumerate(CANDIDATES):
            redrawn = {"structure": 2} if number == 1 else {}
            store.propose(Candidate(number, KNOWN[name], parent=parent, redrawn=redrawn))
            seconds = {"trial": 0.5, "quality": 3.0}
            found = {"details": {"quality": {"a": 0.2, "b": 0.1}}, "seconds": seconds}
            if scores is None:
                store.record(number, "rejected", filter="quality", cost=3.5, **found)
            else:
                seconds["training"] = 6.0
                scores = dict(zip("ab", scores, strict=True))
                store.record(number, "passed", scores=scores, cost=9.5, **found)
        store.propose(Candidate(6, Graph([("exp", 1)])))
        store.record(6, "rejected", filter="constant", seconds={"trial": 0.5}, cost=0.5)
    return path


class Page(HTMLParser):
    """Texts and addresses of a page; complains of what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.addresses, self.tags = [], [], [], set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


@pytest.fixture
def written(path, tmp_path, search):
    out = tmp_path / "pages/out.html"
    assert search("report", path, out) == (0, "", f"wrote {out}\n")
    return out.read_text(encoding="utf-8")


def test_stands_alone(written):
    page = Page(written)
    assert len(page.addresses) == 5
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"url\(|@import|https?:", written)


def test_what_it_says(written, path, tmp_path):
    page = Page(written)
    whole = " ".join("".join(page.texts).split())
    for part in (
        "Search a <b> & c.sqlite",
        "7candidates 7of them different 5of these passed 65.00%best mean accuracy".replace(" ", ""),
        "The best: candidate 5",
        "a 80.00%, b 50.00%; mean 65.00%. As a layer it is computed by plain torch",
        "drawn anew, equal to a known layer: 2 by structure",
        "2 that no other beats on all anchors",
        "It is 2 mutations from a random one.",
        '"<c>.zip"',
        f"evonorm search show '{path}' 5",
        f"evonorm search export '{path}' 5 layer.json",
        f"evonorm search top '{path}' --count 5",
        f"evonorm search plot calibration 'a <b> & c={path}' --out calibration.png",
        f"evonorm search report '{path}' {tmp_path}/pages/out.html",
    ):
        assert part.replace(" ", "") in whole.replace(" ", ""), part
    assert "<b>0</b>" in written  # the first ancestor
    # Its other child that passed, beside the one that leads to the best.
    trunk = written[written.index('class="trunk"') :]
    numbers = re.findall(r"<b>(\d)</b>", trunk)
    assert numbers == ["0", "1", "3", "4", "5"]


def test_stages_by_hand(path):
    with Store(path) as store:
        found = report.stages(store.finished(), CONFIG["filters"])
    assert found == [
        {"stage": "trial", "came": 7, "refused": 1, "seconds": 3.5, "passed": 1 - 1 / 7},
        {"stage": "quality", "came": 6, "refused": 1, "seconds": 18.0, "passed": 1 - 1 / 6},
        {"stage": "training", "came": 5, "refused": 0, "seconds": 30.0, "passed": 1.0},
    ]


def test_by_a_kernel(path, tmp_path, search):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute('UPDATE candidates SET scores = \'{"a": 0.1, "b": 0.1}\' WHERE number IN (4, 5)')
    assert search("report", path, tmp_path / "out.html")[0] == 0
    assert "it is computed by the fused EvoNorm-S0." in (tmp_path / "out.html").read_text()


def test_none_has_passed(path, tmp_path, search):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM candidates WHERE status = 'passed'")
    assert search("report", path, tmp_path / "out.html")[0] == 0
    text = (tmp_path / "out.html").read_text()
    assert "Filters: what they refuse and cost" in text
    assert "The best" not in text
    assert "<img" not in text


def test_a_file_of_version_1(path, tmp_path, search):
    """As it is: nothing is written to it."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP INDEX by_mark")
        for column in ("fingerprint", "mark", "redrawn"):
            db.execute(f"ALTER TABLE candidates DROP COLUMN {column}")
        db.execute("UPDATE about SET value = '1' WHERE key = 'version'")
    before = path.read_bytes()
    assert search("report", path, tmp_path / "out.html")[0] == 0
    assert "The best: candidate 5" in (tmp_path / "out.html").read_text()
    assert path.read_bytes() == before


def test_a_page_is_replaced_and_nothing_else(path, tmp_path, search):
    out = tmp_path / "out.html"
    out.write_text("<html>of somebody</html>")
    status, _, err = search("report", path, out)
    assert (status, err.count("\n")) == (2, 1)
    assert "is there already, and not of this command" in err
    assert search("report", path, out, "--force")[0] == 0
    assert search("report", path, out)[0] == 0
    assert search("report", path, path, "--force")[0] == 2
    assert Store(path).next_number() == 7


def test_bad_stores(path, tmp_path, search):
    with Store.create(tmp_path / "empty.sqlite", CONFIG):
        pass
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE about SET value = '9' WHERE key = 'version'")
    (tmp_path / "text.sqlite").write_text("no database")
    for name, message in (
        ("none.sqlite", "there is no search in"),
        ("empty.sqlite", "has no results yet: there is nothing to report"),
        (path.name, "version '9', not"),
        ("text.sqlite", "is no search's file or is damaged"),
        (".", "is a folder, not the file of a search"),
    ):
        status, out, err = search("report", tmp_path / name, tmp_path / "out.html")
        assert (status, out, err.count("\n")) == (2, "", 1), name
        assert message in err
        assert not (tmp_path / "out.html").exists()
