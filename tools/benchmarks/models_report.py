"""What the benchmark of models writes."""

from evonorm_plugins.benchmarks.report import OURS, RIVAL, bars
from evonorm_plugins.plots import pyplot, save_figure
from evonorm_plugins.text_table import aligned


def models_report(rows):
    """Time and memory of one training iteration of one model, norm by norm."""
    base = rows[0]
    lines = [("", "median ms", "p10 to p90", "ratio", "peak MiB", "ratio", "kept MiB")]
    for row in rows:
        lines.append(
            (
                row["norm"],
                f"{row['median_ms']:.1f}",
                f"{row['p10_ms']:.1f} to {row['p90_ms']:.1f}",
                f"{row['median_ms'] / base['median_ms']:.2f}",
                f"{row['peak_MiB']:.0f}",
                f"{row['peak_MiB'] / max(base['peak_MiB'], 1e-9):.2f}",
                f"{row['kept_MiB']:.0f}",
            )
        )
    size = f"{base['images']}x3x{base['size']}x{base['size']}"
    head = f"{base['model']} {size}, one training iteration, {base['rounds']} rounds"
    return f"{head}\n\n{aligned(lines)}"


def plot_models(rows, path):
    """Bars for each model: time and peak memory of one iteration over those with BN."""
    plt = pyplot()
    models = list(dict.fromkeys(row["model"] for row in rows))
    kinds = (("median_ms", "time"), ("peak_MiB", "peak memory"))
    longest = max(sum(row["model"] == model for row in rows) for model in models)
    figure, grid = plt.subplots(
        len(models),
        2,
        figsize=(9, len(models) * (1.0 + 0.35 * longest)),
        layout="constrained",
        squeeze=False,
    )
    for line, model in zip(grid, models, strict=True):
        of = {row["norm"]: row for row in rows if row["model"] == model}
        for axes, (key, shown) in zip(line, kinds, strict=True):
            base = max(of["BN"][key], 1e-9)
            colours = [RIVAL if name in ("BN", "GN") else OURS for name in of]
            bars(
                axes, list(of), [row[key] / base for row in of.values()], colours,
                f"{model}, {shown}",
            )  # fmt: skip
    figure.suptitle(f"one training iteration over that with BN\n{rows[0]['device']}", fontsize=11)
    save_figure(figure, path, dpi=120)
