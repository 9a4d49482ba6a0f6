"""A search as one page of HTML that needs no script, no other file and no network."""

import base64
import html
import json
import shlex
import tempfile
import time
from pathlib import Path

from evonorm_plugins.errors import StoreError
from evonorm_plugins.files import replacing
from evonorm_plugins.layers.graph.formula import mathml
from evonorm_plugins.layers.graph.fused import fused_formula
from evonorm_plugins.search import report
from evonorm_plugins.search.figures import FIGURES
from evonorm_plugins.search.page_style import STYLE

_MADE_BY = '<meta name="generator" content="evonorm search report">'
# Children of an ancestor that are shown beside the one that leads to the winner, and letters of a
# formula beyond which it is not typeset.
_SIBLINGS, _LETTERS = 3, 400
_CAPTIONS = {
    "time": "Every candidate that passed, by the clock. The line is the best so far.",
    "top": "The best ten so far against different candidates: mean and deviation, dotted where "
    "fewer have passed.",
    "quality": "Accuracies at the quality filter.",
    "histogram": "Accuracies of the layers that passed, on each anchor.",
    "calibration": "Accuracy on each anchor against that on the others.",
}


def write_page(store, path):
    """Write the page of an open :class:`evonorm_plugins.search.store.Store` to a file.

    Raises:
        StoreError: the search has no results yet.
        MissingDependencyError: matplotlib is not installed.
        InputError, RunError, NoSpaceError: the file cannot be written.
    """
    overview = report.overview(store)
    if not overview["finished"]:
        raise StoreError(f"{store.path} has no results yet: there is nothing to report")
    text = _Page(store, overview, path).text()
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def is_page(path):
    """Whether a file is such a page."""
    with open(path, "rb") as file:
        return _MADE_BY.encode() in file.read(1000)


class _Page:
    """The page's sections, each as HTML, with the commands that give their numbers."""

    def __init__(self, store, overview, path):
        self.config, self.name, self.out = store.config, store.path.name, path
        self.store = store.path
        self.found, self.numbers = overview, overview["numbers"]
        self.tried = report.different(overview["finished"])
        self.passed = [c for c in self.tried if c.status == "passed"]
        self.best = overview["best"]

    def text(self):
        sections = [self.head()]
        if self.best:
            sections.append(self.winner())
        sections.append(self.filters())
        if self.best:
            sections += [self.layers(), self.front(), self.ancestry(), self.figures()]
        sections += [self.settings(), self.about()]
        title = html.escape(f"Search {self.name}")
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"{_MADE_BY}\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n{''.join(sections)}</body>\n</html>\n"
        )

    def command(self, name, *rest):
        text = " ".join(("evonorm search", name, shlex.quote(str(self.store)), *map(str, rest)))
        return f'<code class="command">{html.escape(text)}</code>\n'

    # ---- sections ----

    def head(self):
        n, times = self.numbers, [c.finished_at for c in self.found["finished"]]
        core_hours = n["core_hours"]
        rate = f"{len(self.passed) / core_hours:.1f}" if core_hours else "none"
        tiles = [
            (f"{n['results']:,}", "candidates"),
            (f"{n['different']:,}", "of them different"),
            (f"{len(self.passed):,}", "of these passed"),
            (f"{self.best[0].score:.2%}" if self.best else "none", "best mean accuracy"),
            (f"{n['hours']:.2f}", "hours by the clock"),
            (f"{core_hours:.2f}", "core hours of workers"),
            (rate, "passed in a core hour"),
        ]
        written = "".join(f"<div><b>{value}</b>{label}</div>" for value, label in tiles)
        kind = "Search" if self.config.get("kind", "search") == "search" else "Sample of filters"
        space = self.config.get("space")
        about = [f"space {space}"] if space else []
        about += [f"{n['handed_out']} more handed out"] if n["handed_out"] else []
        about += [f"results from {_date(times[0])} to {_date(times[-1])}"]
        return (
            f"<h1>{kind} {html.escape(self.name)}</h1>\n"
            f'<p class="soft">{html.escape(", ".join(about))}</p>\n'
            f'<div class="tiles">{written}</div>\n' + self.command("show", "--json")
        )

    def winner(self):
        best = self.best[0]
        formula = fused_formula(best.graph.canonical())
        computed = f"the fused {formula}" if formula else "plain torch, or torch.compile"
        accuracies = ", ".join(f"{a} {s:.2%}" for a, s in best.scores.items())
        return (
            f"<h2>The best: candidate {best.number}</h2>\n"
            f'<div class="winner">{_typeset(best.graph)}</div>\n'
            f"<p><code>{html.escape(str(best.graph))}</code></p>\n"
            f"<p>{html.escape(accuracies)}; mean {best.score:.2%}. As a layer it is computed by "
            f"{html.escape(computed)}.</p>\n"
            + self.command("show", best.number)
            + self.command("export", best.number, "layer.json")
        )

    def filters(self):
        stages = self.numbers["stages"]
        total = sum(s["seconds"] for s in stages) or 1
        rows = [
            [
                html.escape(s["stage"]),
                f"{s['came']:,}",
                f"{s['refused']:,}",
                "" if s["passed"] is None else f"{s['passed']:.1%}",
                f"{s['seconds']:,.1f}",
                f"{s['seconds'] / s['came']:.3f}" if s["came"] else "",
                _bar(s["seconds"] / total),
            ]
            for s in stages
        ]
        head = ["", "came", "refused", "went on", "seconds", "for one", "share of the time"]
        text = "<h2>Filters: what they refuse and cost</h2>\n" + _table(head, rows, left=-1)
        outcomes = [
            [html.escape(name), f"{o['results']:,}", f"{o['different']:,}", f"{o['seconds']:,.1f}"]
            for name, o in self.numbers["outcomes"].items()
        ]
        text += _table(["ended as", "all", "different", "seconds"], outcomes)
        if self.numbers["redrawn"]:
            drawn = ", ".join(f"{n:,} by {how}" for how, n in self.numbers["redrawn"].items())
            text += f"<p>Proposals drawn anew, equal to a known layer: {html.escape(drawn)}.</p>\n"
        if self.numbers["whole_trainings"]:
            text += (
                "<p>Training every different candidate to the end, without filters, would take "
                f"{self.numbers['whole_trainings']:.1f} times as long.</p>\n"
            )
        return text + self.command("show") + self.command("show", "--json")

    def layers(self):
        title = f"<h2>The best {len(self.best)}</h2>\n"
        return title + self.scores(self.best) + self.command("top", "--count", len(self.best))

    def front(self):
        front = self.found["front"]
        more = f"; the first {report.TOP} of them" if len(front) > report.TOP else ""
        text = f"<h2>The front</h2>\n<p>{len(front)} that no other beats on all anchors{more}.</p>"
        return text + self.scores(front[: report.TOP]) + self.command("watch", "--once")

    def scores(self, candidates):
        anchors = list(candidates[0].scores)
        rows = [
            [c.number, f"{c.score:.2%}", _typeset(c.graph)]
            + [f"{c.scores[anchor]:.2%}" for anchor in anchors]
            for c in candidates
        ]
        return _table(["number", "mean", "layer", *map(html.escape, anchors)], rows, left=2)

    def ancestry(self):
        """The winner's line from its first ancestor on, and what else became of each of them."""
        line = self.found["ancestors"][::-1]
        items = []
        for ancestor, heir in zip(line, [*line[1:], None], strict=True):
            heir_number = heir and heir.number
            others = [
                c for c in self.passed if c.parent == ancestor.number and c.number != heir_number
            ]
            others.sort(key=lambda c: -c.score)
            shown = "".join(f"<li>{_node(c)}</li>" for c in others[:_SIBLINGS])
            if len(others) > _SIBLINGS:
                shown += f"<li><small>{len(others) - _SIBLINGS} more that passed</small></li>"
            items.append(f"<li>{_node(ancestor)}{f'<ul>{shown}</ul>' if shown else ''}</li>")
        far = f"{len(line) - 1} mutations from a random one"
        far = {1: "a random layer", 2: "one mutation from a random one"}.get(len(line), far)
        return (
            f"<h2>Ancestry of the best</h2>\n<p>It is {far}. Below each ancestor are the best of "
            f"its other children that passed.</p>\n"
            f'<ol class="trunk">{"".join(items)}</ol>\n' + self.command("watch", "--once")
        )

    def figures(self):
        label = Path(self.name).stem
        searches = {label: self.found["finished"]}
        wanted = list(_CAPTIONS)
        if not any("quality" in c.details for c in self.tried):
            wanted.remove("quality")
        parts = []
        with tempfile.TemporaryDirectory() as folder:
            for name in wanted:
                picture = Path(folder, "figure.png")
                FIGURES[name](searches, picture)
                data = base64.b64encode(picture.read_bytes()).decode()
                parts.append(
                    f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
                    f"<figcaption>{_CAPTIONS[name]}</figcaption>"
                    + self.plot(name, label)
                    + "</figure>\n"
                )
        return f'<h2>Scores</h2>\n<div class="figures">{"".join(parts)}</div>\n'

    def plot(self, name, label):
        given = shlex.quote(f"{label}={self.store}")
        text = f"evonorm search plot {name} {given} --out {name}.png"
        return f'<code class="command">{html.escape(text)}</code>'

    def settings(self):
        written = "".join(
            f"<div><dt>{html.escape(key)}</dt><dd>{html.escape(json.dumps(value))}</dd></div>\n"
            for key, value in self.config.items()
            if key != "kind"
        )
        return f"<h2>Settings</h2>\n<dl>{written}</dl>\n" + self.command("show", "--json")

    def about(self):
        made = self.command("report", shlex.quote(str(self.out)))
        return f'<p class="soft">This page was made on {_date(time.time())} by</p>\n{made}'


def _date(seconds):
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _typeset(graph):
    formula = str(graph)
    return mathml(graph) if len(formula) <= _LETTERS else f"<code>{html.escape(formula)}</code>"


def _node(candidate):
    return (
        f"<div><b>{candidate.number}</b> <small>{candidate.score:.2%}</small> "
        f"{_typeset(candidate.graph)}</div>"
    )


def _bar(share):
    return f'<span class="bar" style="width: {6 * share:.2f}rem"></span> {share:.1%}'


def _table(head, rows, left=None):
    """Rows of HTML; the first column, and the one numbered ``left``, begin at the left."""
    to_left = {0} if left is None else {0, left % len(head)}

    def line(tag, cells):
        written = (
            f"<{tag}{' class=left' if k in to_left else ''}>{cell}</{tag}>"
            for k, cell in enumerate(cells)
        )
        return f"<tr>{''.join(written)}</tr>\n"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>{line("th", head)}{body}</table></div>\n'
