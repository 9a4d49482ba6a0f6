"""What benchmarks write: CSV, tables, pictures."""

import csv

from evonorm_plugins.files import replacing
from evonorm_plugins.plots import pyplot, save_figure
from evonorm_plugins.text_table import aligned

OURS, RIVAL, FLOOR = "#1b998b", "#30638e", "#b0b0b0"


def write_csv(path, rows):
    """Rows, dicts of the same keys, to ``path``, which is never seen half written."""
    with replacing(path) as partial, open(partial, "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def is_ours(path):
    """Whether a file is one that :func:`write_csv` wrote for a benchmark."""
    with open(path, "rb") as file:
        return b"evonorm_plugins" in file.readline(1000)


def label(row):
    """What a competitor is called: its name, and its ``impl`` where that is worth a word."""
    return row["competitor"] + ("" if row["impl"] in ("auto", "torch.nn") else f" {row['impl']}")


def layers_report(rows):
    """Times, ratios and memory of all competitors on one shape.

    Args:
        rows: those of one shape, one for each competitor, phase and dtype. The first dtype has the
            table, others a column of it.
    """
    every, rows = rows, first_dtype(rows)
    others = list(dict.fromkeys(row["dtype"] for row in every if row["dtype"] != rows[0]["dtype"]))
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    by_label = {}
    for row in rows:
        by_label.setdefault(label(row), {})[row["phase"]] = row
    floors = [name for name in by_label if name.startswith("copy")]
    whole = phases[-1]
    other = {(label(r), r["dtype"]): r["median_ms"] for r in every if r["phase"] == whole}
    columns = (*phases, *(f"{whole} {dtype}" for dtype in others))
    times = [("median ms", *columns, "p10 to p90", "kept MiB", *(f"of {f}" for f in floors))]
    for name, of in by_label.items():
        row = of[whole]
        shares = (by_label[f][whole]["median_ms"] / row["median_ms"] for f in floors)
        times.append(
            (
                name,
                *(f"{of[phase]['median_ms']:.3f}" for phase in phases),
                *(f"{other[name, d]:.3f}" if (name, d) in other else "-" for d in others),
                f"{row['p10_ms']:.3f} to {row['p90_ms']:.3f}",
                f"{row['kept_MiB']:.2f}",
                *(f"{100 * share:.0f}%" for share in shares),
            )
        )
    first = rows[0]
    head = ", ".join(first[key] for key in ("shape", "dtype", "layout", "mode"))
    head += f", {first['rounds']} rounds"
    parts = [head, aligned(times), f"{whole}: time over that of", aligned(_ratios(rows, whole))]
    for dtype in others:
        ratios = _ratios([row for row in every if row["dtype"] == dtype], whole)
        parts += [f"{whole}: time over that of, {dtype}", aligned(ratios)]
    return "\n\n".join(part for part in parts if part)


def first_dtype(rows):
    """The rows of the dtype that comes first."""
    return [row for row in rows if row["dtype"] == rows[0]["dtype"]]


def _ratios(rows, phase):
    """Each EvoNorm's median over those of its rivals: the pairs, its own other forms, floors."""
    rows = [row for row in rows if row["phase"] == phase]
    ours = [row for row in rows if row["impl"] == "auto"]
    names = {row["competitor"] for row in ours}
    median = {(row["competitor"], row["impl"]): row["median_ms"] for row in rows}
    shared = [(key, label(row)) for row in rows if (key := _key(row))[0] not in names]
    own = list(dict.fromkeys(i for name, i in median if name in names and i != "auto"))
    lines = [(phase, *(shown for _, shown in shared), *(f"its {impl}" for impl in own))]
    for row in ours:
        rivals = [key for key, _ in shared] + [(row["competitor"], impl) for impl in own]
        cells = (f"{row['median_ms'] / median[r]:.2f}" if r in median else "-" for r in rivals)
        lines.append((row["competitor"], *cells))
    return lines


def _key(row):
    return row["competitor"], row["impl"]


def bars(axes, names, values, colours, title):
    """One bar of ``values`` for each of ``names``, from top to bottom, and a line at 1."""
    axes.barh(range(len(names)), values, color=colours)
    axes.axvline(1, color="#d1495b", linewidth=1.2)
    over_line = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5}
    limit = max(1.0, *values) * 1.18
    for place, value in enumerate(values):
        axes.text(
            value + limit / 100, place, f"{value:.2f}", va="center", fontsize=8, bbox=over_line
        )
    axes.set_title(title, fontsize=10)
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, limit))
    axes.spines[["top", "right"]].set_visible(False)


def plot_layers(rows, path):
    """Bars for each shape: time of the whole run over that of BN+ReLU, of the first dtype."""
    plt = pyplot()
    rows = first_dtype(rows)
    whole = rows[-1]["phase"]
    rows = [row for row in rows if row["phase"] == whole]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    names = list(dict.fromkeys(map(label, rows)))
    columns = min(len(shapes), 4)
    lines = -(-len(shapes) // columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(2.2 + 3 * columns, lines * (1.2 + 0.25 * len(names))),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat[len(shapes) :]:
        axes.set_axis_off()
    for axes, shape in zip(grid.flat, shapes, strict=False):
        of = {label(row): row for row in rows if row["shape"] == shape}
        ratios = [row["median_ms"] / of["BN+ReLU"]["median_ms"] for row in of.values()]
        bars(axes, list(of), ratios, [_colour(row) for row in of.values()], shape)
        if axes not in grid[:, 0] and list(of) == names:
            axes.set_yticklabels([])
    first = rows[0]
    figure.suptitle(
        f"{whole}: time over that of BN+ReLU\n"
        f"{first['dtype']}, {first['layout']}, {first['device']}",
        fontsize=11,
    )
    save_figure(figure, path, dpi=120)


def _colour(row):
    return FLOOR if row["competitor"] == "copy" else OURS if row["impl"] == "auto" else RIVAL
