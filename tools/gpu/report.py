"""The Markdown that people read; gpu_check.json has all numbers."""

from evonorm_plugins import text_table
from gpu.goals import WHOLE

DRY = "**A dry run on a CPU: its times mean nothing.**"


def markdown(result):
    """A page: verdicts first, then device and versions, times, and what was skipped."""
    parts = ["# gpu_check", f"{result['seconds']:.0f} seconds."]
    if result["dry_run"]:
        parts.append(DRY)
    parts += [
        table(["goal", "asked", "worst", "where", "verdict"], map(dict.values, result["goals"])),
        "## Device and versions",
        table(["", ""], result["environment"].items()),
    ]
    layers, host, models = layer_rows(result["layer"]), host_rows(result["host"]), result["model"]
    if layers:
        parts += [f"## Layers, {WHOLE}, median ms", *layers]
    if host:
        head = ["shape", "layout", "layer", "forward", WHOLE, "of BN+ReLU"]
        parts += ["## Host time, microseconds", table(head, host)]
    if models:
        head = ["model", "images", "size", "dtype", "norm", "ms", "of BN", "peak MiB"]
        parts += ["## Training steps", table(head, model_rows(models))]
    if result["skipped"]:
        rows = [(row["name"], row["reason"]) for row in result["skipped"]]
        parts += ["## Skipped", table(["what", "why"], rows)]
    return "\n\n".join(parts) + "\n"


def table(head, rows):
    return text_table.markdown(head, ([str(c).replace("|", "/") for c in row] for row in rows))


def layer_rows(rows):
    """A table for each set of competitors, with a line for each case."""
    cases = {}
    for row in rows:
        if row["phase"] == WHOLE:
            impl = "" if row["impl"] in ("auto", "torch.nn") else f" {row['impl']}"
            case = row["shape"], row["dtype"], row["layout"]
            cases.setdefault(case, {})[row["competitor"] + impl] = row["median_ms"]
    tables = {}
    for case, times in cases.items():
        line = [*case, *(f"{ms:.3f}" for ms in times.values())]
        tables.setdefault(tuple(times), []).append(line)
    return [table(["shape", "dtype", "layout", *of], lines) for of, lines in tables.items()]


def host_rows(rows):
    return [
        (
            row["shape"],
            row["layout"],
            row["competitor"],
            *(f"{row[key]:.1f}" for key in ("forward_us", f"{WHOLE}_us")),
            f"{row[f'{WHOLE}_of_BN+ReLU']:.2f}",
        )
        for row in rows
    ]


def model_rows(rows):
    """Lines of all models; the first norm of each is what the others are compared with."""
    first, lines = {}, []
    for row in rows:
        case = [row[key] for key in ("model", "images", "size", "dtype")]
        base = first.setdefault(tuple(case), row["median_ms"])
        times = f"{row['median_ms']:.1f}", f"{row['median_ms'] / base:.2f}"
        lines.append([*case, row["norm"], *times, row["peak_MiB"] or "-"])
    return lines
