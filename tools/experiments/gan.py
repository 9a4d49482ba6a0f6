#!/usr/bin/env python
"""BigGAN-deep with several norms, seed by seed: the paper's Table 5 in small.

`evonorm gan train` makes the runs, `evonorm eval gan --out metrics.json` scores the best checkpoint
of each. `collect` puts what they left into a few small files, `report` makes tables and pictures of
these alone.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

from evonorm_plugins.errors import DataError, reason, run_command
from evonorm_plugins.files import check_folder, check_output, holds_record, replacing
from evonorm_plugins.metrics.table import read_records, text_rows
from evonorm_plugins.plots import COLOURS, pyplot, save_figure
from evonorm_plugins.text_table import markdown
from evonorm_plugins.training.records import read_records as read_lines

EXAMPLES = """
examples:
  small files of all runs and of the floor, and samples of each norm's first seed at its best:
    tools/experiments/gan.py collect output/cifar10-small_*/seed* --floor floor.json
  tables on stdout, and a picture of the curves:
    tools/experiments/gan.py report

docs/results/gan/scores/*.json are records of `evonorm eval gan`, which `evonorm eval table` takes, too.
exit status: 0 done, 1 failed, 2 bad input
"""  # noqa: E501
SCORES = ("frechet_distance", "class_score")
WATCHED = (
    *("d_loss", "g_loss", "d_accuracy_real", "d_accuracy_fake", "d_grad_norm", "g_grad_norm"),
)
POINTS = 60  # of a curve


def read_run(folder):
    """What is kept of the run in a folder.

    Returns:
        ``norm``, ``seed``, ``steps`` made and ``wanted``; ``scores``, ``[step, distance, class
        score]`` of every evaluation; ``means`` of what is watched since the point before, by name,
        with their steps under ``step``; ``largest``, the largest of each gradient's norm.

    Raises:
        DataError: it is none of `evonorm gan train`.
    """
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        run = {"norm": config["norm"], "seed": config["seed"], "wanted": config["steps"]}
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{folder} is no run of `evonorm gan train`: {reason(error)}") from None
    lines = read_lines(folder / "metrics.jsonl")
    watched = [r for r in lines if "d_loss" in r]
    if not watched:
        raise DataError(f"{folder}/metrics.jsonl holds no losses")
    scores = [[r["step"], *(r.get(k) for k in SCORES)] for r in lines if SCORES[0] in r]
    width = max(1, len(watched) // POINTS)
    parts = [watched[k : k + width] for k in range(0, len(watched), width)]
    means = {k: [_mean([r.get(k) for r in part]) for part in parts] for k in WATCHED}
    largest = {
        k: max((r[k] for r in watched if r.get(k) is not None), default=None)
        for k in WATCHED
        if k.endswith("grad_norm")
    }
    run |= {"steps": max(r["step"] for r in lines), "scores": scores, "largest": largest}
    return run | {"means": {"step": [part[-1]["step"] for part in parts], **means}}


def _mean(values):
    known = [v for v in values if v is not None]
    return round(statistics.fmean(known), 4) if known else None


def collect(args):
    """Small files of what runs left: scores and curves; samples of the first seed of each norm."""
    folders = [Path(folder) for folder in args.runs]
    curves = Path(args.out, "curves.json")
    check_output(curves, name="--out", ours=lambda path: holds_record(path, "runs"))
    check_folder(args.figures, name="--figures")
    runs = [(read_run(folder), folder) for folder in folders]
    runs.sort(key=lambda r: (r[0]["norm"], r[0]["seed"]))
    records = {f"{_plain(r['norm'])}_seed{r['seed']}": f / "metrics.json" for r, f in runs}
    if args.floor:
        records["floor"] = Path(args.floor)
    there = {name: path for name, path in records.items() if path.is_file()}
    read_records(there.values())  # that they can stand in one table
    (curves.parent / "scores").mkdir(parents=True, exist_ok=True)
    for name, path in there.items():
        with replacing(curves.parent / f"scores/{name}.json") as partial:
            partial.write_text(path.read_text())
    for name in sorted(records.keys() - there):
        print(f"{name}: {records[name]} is not there", file=sys.stderr)
    with replacing(curves) as partial:
        lines = ",\n".join(json.dumps(r) for r, _ in runs)
        partial.write_text(f'{{"runs": [\n{lines}\n]}}\n')
    print(curves)
    first = {run["norm"]: folder for run, folder in reversed(runs)}
    for norm, folder in first.items():
        if (folder / "best.pt").is_file():
            _sample(folder / "best.pt", Path(args.figures, f"gan_{_plain(norm)}.png"))


def _sample(checkpoint, out):
    """Eight samples of every class, a class a column; not chosen."""
    command = [
        *(sys.executable, "-m", "evonorm_plugins.cli", "gan", "sample", "--checkpoint"),
        *(str(checkpoint), "--n", "80", "--columns", "10", "--classes", *map(str, range(10))),
        *("--out", str(out), "--force"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"{checkpoint}: {done.stderr.strip().splitlines()[-1]}")
    out.with_suffix(".json").unlink(missing_ok=True)
    print(out)


def _plain(norm):
    """A norm's name as a part of a file's."""
    return norm.partition("(")[0]


def report(args):
    """Tables of scores and of stability on stdout, and a picture of the curves."""
    try:
        runs = json.loads(Path(args.results, "curves.json").read_text())["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{args.results}/curves.json: {reason(error)}") from None
    check_folder(args.figures, name="--figures")
    records = read_records(sorted(Path(args.results, "scores").glob("*.json")))
    if records:
        head, *rows = scores(records)
        print(markdown(head, rows), end="\n\n")
    head, *rows = stability(runs, args.lost)
    print(markdown(head, rows))
    out = Path(args.figures, "gan_curves.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    plot(runs, out)
    print(f"\n{out}")


def scores(records):
    """The rows of `evonorm eval table`; only those of Inception are called FID and IS."""
    head, *rows = text_rows(records)
    own = {"FID": "Fréchet distance", "IS": "class score"}
    names = [re.fullmatch(r"(.*?)( \[.*\])?( \(.*\))?", name).groups() for name in head]
    return [[(own.get(n, n) if label else n) + (more or "") for n, label, more in names], *rows]


def stability(runs, lost):
    """A row for each run: where it ended, its best distance and its last, gradients' norms."""
    head = ["norm", "seed", "steps", "best distance", "at step", "last distance"]
    rows = [[*head, "d's gradients: median, largest", "g's: median, largest"]]
    for r in runs:
        scored = [s for s in r["scores"] if s[1] is not None]
        best = min(scored, key=lambda s: s[1], default=None)
        last = scored[-1][1] if scored else None
        ended = f"{r['steps']:,}" + (f" of {r['wanted']:,}" if r["steps"] < r["wanted"] else "")
        worse = best is not None and last > lost * best[1]
        cells = [r["norm"], str(r["seed"]), ended]
        cells += [f"{best[1]:.2f}", f"{best[0]:,}"] if best else ["-", "-"]
        cells.append("-" if last is None else f"{last:.2f}" + " (lost)" * worse)
        for key in ("d_grad_norm", "g_grad_norm"):
            known = [v for v in r["means"][key] if v is not None]
            cells.append(
                f"{statistics.median(known):.3g}, {r['largest'][key]:.3g}" if known else "-"
            )
        rows.append(cells)
    return rows


def plot(runs, out):
    """Distance, class score, gradients and losses against steps; a line for each run."""
    figure, panels = pyplot().subplots(2, 2, figsize=(10.5, 7), layout="constrained", sharex=True)
    norms = list(dict.fromkeys(r["norm"] for r in runs))
    for r in runs:
        k = norms.index(r["norm"])
        style = {"color": COLOURS[k % len(COLOURS)], "linewidth": 1.2}
        first = r is next(x for x in runs if x["norm"] == r["norm"])
        style["label"] = r["norm"] if first else None
        for axes, column in zip(panels[0], (1, 2), strict=True):
            points = [(s[0], s[column]) for s in r["scores"] if s[column] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", **style)
        for axes, key in zip(panels[1], ("d_loss", "g_grad_norm"), strict=True):
            axes.plot(r["means"]["step"], r["means"][key], **style)
    titles = (
        "Fréchet distance",
        "class score",
        "loss of the discriminator",
        "norm of the gradients of the generator",
    )
    for axes, title in zip(panels.flat, titles, strict=True):
        axes.set_title(title)
        axes.grid(alpha=0.3)
    for axes in (panels[0, 0], panels[1, 1]):
        axes.set_yscale("log")
    for axes in panels[1]:
        axes.set_xlabel("step")
    handles = panels[1, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(norms), frameon=False)
    save_figure(figure, out, dpi=100)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help=collect.__doc__)
    collecting.add_argument("runs", nargs="+", metavar="DIR")
    collecting.add_argument("--floor", metavar="METRICS.json", help="real images against others")
    collecting.add_argument("--out", default="docs/results/gan", metavar="DIR")
    reporting = commands.add_parser("report", help=report.__doc__)
    reporting.add_argument("results", nargs="?", default="docs/results/gan", metavar="DIR")
    reporting.add_argument(
        "--lost",
        type=float,
        default=1.5,
        help="a run is lost whose last distance is so many times its best (default: 1.5)",
    )
    for command in (collecting, reporting):
        command.add_argument("--figures", default="docs/figures", metavar="DIR")
    args = parser.parse_args(argv)
    work = {"collect": collect, "report": report}[args.command]
    return run_command(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
