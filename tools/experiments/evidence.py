#!/usr/bin/env python
"""Tables and pictures of sweeps that compare norms.

Reads what a sweep leaves in its folder: accuracies, parameters, settings.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from evonorm_plugins.cli.types import count
from evonorm_plugins.errors import InputError, run_command
from evonorm_plugins.files import check_output
from evonorm_plugins.plots import COLOURS, is_ours, pyplot, save_figure
from evonorm_plugins.text_table import markdown, spread

EXAMPLES = """
examples:
  accuracy of every norm (rows) for every value of a searched key (columns):
    tools/experiments/evidence.py table output/evidence_norms --columns architecture
  the same of some of the trials, from the folders of two sweeps:
    tools/experiments/evidence.py table output/a output/b --columns images_per_worker \\
        --where "architecture=MobileNetV2 x0.25"
  the same as a picture, the key on the horizontal axis:
    tools/experiments/evidence.py plot output/evidence_batch --x images_per_worker --out batch.png
  accuracy against parameters and inference FLOPs, norms folded into convolutions:
    tools/experiments/evidence.py cost output/evidence_widths --out widths.png
  time of a training step, the norms of the sweep taking turns, and peak memory:
    tools/experiments/evidence.py time output/evidence_norms --rounds 5

exit status: 0 done, 1 failed, 2 bad input
"""
WHERE = "only trials with this value of a searched key; may be given several times"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def read_sweeps(folders, where=()):
    """``(search, trials)`` of sweeps: lists of values; records with ``config`` and ``result``.

    Args:
        folders: of sweeps over the same keys.
        where: ``(key, value as text)`` pairs; only trials with these values are read.

    Raises:
        InputError: there is no sweep, no trial of it has ended, or no value is like that.
    """
    search, trials = {}, []
    for folder in folders:
        found, ended = _read_sweep(folder)
        if search and set(found) != set(search):
            raise InputError(
                f"{folder} searches over {', '.join(found)}, {folders[0]} over {', '.join(search)}"
            )
        for key, values in found.items():
            known = search.setdefault(key, [])
            known += [value for value in values if value not in known]
        trials += ended
    for key, text in where:
        kept = [value for value in labels(search, key) if str(value) == text]
        if not kept:
            known = ", ".join(map(str, search[key]))
            raise InputError(f"--where {key}={text}: the sweep has {known}")
        search[key] = kept
        trials = [trial for trial in trials if trial["values"][key] in kept]
    return search, trials


def _read_sweep(folder):
    path = Path(folder, "sweep.json")
    if not path.is_file():
        raise InputError(f"there is no {path}; evonorm sweep writes it")
    sweep = json.loads(path.read_text())
    trials = []
    for record in sweep["trials"]:
        result = Path(folder, "trials", f"{record['trial']:03d}", "result.json")
        if result.is_file():
            trials.append({**record, "result": json.loads(result.read_text())})
    if not trials:
        raise InputError(f"no trial of {folder} has ended")
    return sweep["search"], trials


def labels(search, key):
    """The values of a searched key, in the order of the sweep's file.

    Raises:
        InputError: the sweep does not search over it.
    """
    if key not in search:
        raise InputError(f"the sweep has no {key!r}; it searches over {', '.join(search)}")
    return list(search[key])


def of(trials, **values):
    return [t for t in trials if all(t["values"][k] == v for k, v in values.items())]


def percents(trials):
    """Accuracies in percent of those that finished."""
    return [t["val_accuracy"] * 100 for t in trials if t["status"] == "finished"]


def accuracy(trials):
    """Mean accuracy in percent and half the range as text; how many did not finish."""
    finished = percents(trials)
    lost = len(trials) - len(finished)
    if not finished:
        return trials[0]["status"] if trials else ""
    text = spread(finished)
    return f"{text} ({lost} of {len(trials)} {trials[-1]['status']})" if lost else text


def table(args):
    """Accuracy in percent, a row for each norm; of several seeds mean and half the range."""
    search, trials = read_sweeps(args.folders, args.where)
    columns = labels(search, args.columns)
    rows = [
        [row, *(accuracy(of(trials, **{args.rows: row, args.columns: c})) for c in columns)]
        for row in labels(search, args.rows)
    ]
    print(markdown([args.rows, *columns], rows))


def plot(args):
    """Accuracy against a key, a line for each norm."""
    check_output(args.out, ours=is_ours, force=args.force)
    search, trials = read_sweeps(args.folders, args.where)
    x = labels(search, args.x)
    figure, axes = _figure(1)
    for style, norm in zip(_styles(), labels(search, "norm"), strict=False):
        points = [(k, of(trials, norm=norm, **{args.x: v})) for k, v in enumerate(x)]
        points = [(k, percents(ts)) for k, ts in points]
        points = [(k, found) for k, found in points if found]
        ends = [p for k, found in points for p in ((k, k), (min(found), max(found)))]
        axes[0].plot(*ends, color=style["color"], alpha=0.5)
        means = [(k, statistics.fmean(found)) for k, found in points]
        axes[0].plot(*zip(*means, strict=True), label=norm, **style)
    axes[0].set_xticks(range(len(x)), x)
    axes[0].set(xlabel=args.x.replace("_", " "), ylabel="accuracy, %")
    axes[0].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, args.out)


def cost(args):
    """Accuracy against parameters and multiply-adds of folded models."""
    check_output(args.out, ours=is_ours, force=args.force)
    search, trials = read_sweeps(args.folders, args.where)
    figure, axes = _figure(2)
    others = [k for k in search if k not in ("norm", "seed")]
    rows = []
    for style, norm in zip(_styles(), labels(search, "norm"), strict=False):
        points = []
        for values in itertools.product(*(labels(search, key) for key in others)):
            seeds = of(trials, norm=norm, **dict(zip(others, values, strict=True)))
            found = percents(seeds)
            if not found:
                continue
            before, after = folded_cost(seeds[0]["result"]["config"])
            points.append((after[0] / 1e6, after[1] / 1e6, statistics.fmean(found)))
            parameters = [f"{n[0]:,}" for n in (before, after)]
            operations = [f"{n[1] / 1e6:.2f}" for n in (before, after)]
            rows.append([norm, *values, *parameters, *operations, accuracy(seeds)])
        points.sort()
        for panel, column in zip(axes, (0, 1), strict=True):
            panel.plot([p[column] for p in points], [p[2] for p in points], label=norm, **style)
    print(
        markdown(
            ["norm", *others, "parameters", "folded", "M operations", "folded", "accuracy"], rows
        )
    )
    axes[0].set(xlabel="parameters, millions", ylabel="accuracy, %")
    axes[1].set(xlabel="operations of an image in inference, millions")
    axes[0].legend(frameon=False)
    _save(figure, args.out)


def folded_cost(config):
    """Parameters and operations of a config's model, as trained and folded for inference."""
    import torch

    from evonorm_plugins import count_flops, fold_for_inference
    from evonorm_plugins.classification.config import from_dict
    from evonorm_plugins.classification.trainer import build_classifier

    model = build_classifier(from_dict(config), 10).eval()
    image = torch.zeros(1, 3, 32, 32)
    return [
        (sum(p.numel() for p in m.parameters()), count_flops(m, image).total)
        for m in (model, fold_for_inference(model))
    ]


def time_steps(args):
    """Milliseconds of a training step, norms taking turns, and the peak memory of their trials."""
    import torch

    from evonorm_plugins.classification.config import from_dict
    from evonorm_plugins.training.ranks import Ranks

    search, trials = read_sweeps(args.folders, args.where)
    torch.set_num_threads(args.threads)
    columns = labels(search, args.columns)
    rows = {norm: [norm] for norm in labels(search, "norm")}
    for value in columns:
        found = {t["values"]["norm"]: t for t in of(trials, **{args.columns: value})}
        configs = {norm: from_dict(trial["result"]["config"]) for norm, trial in found.items()}
        seconds = step_seconds(configs, Ranks(), args.rounds)
        first = next((seconds[norm] for norm in rows if norm in seconds), None)
        for norm, row in rows.items():
            if norm in seconds:
                memory = found[norm]["result"]["peak_memory_mib"]
                ratio = seconds[norm] / first
                row.append(f"{seconds[norm] * 1000:.0f} ({ratio:.2f}), {memory:.0f} MiB")
            else:
                row.append("")
    print(markdown(["norm", *(f"{c}: ms (ratio), memory" for c in columns)], rows.values()))


def step_seconds(configs, ranks, rounds):
    """Median seconds of a training step of each config, after two steps that are not counted."""
    import torch

    from evonorm_plugins.classification.trainer import Trainer

    data = SimpleNamespace(classes=list(range(10)), mean=[0.5] * 3, std=[0.25] * 3)
    steps = {norm: Trainer(config, ranks, data) for norm, config in configs.items()}
    times = {norm: [] for norm in configs}
    for k in range(rounds + 2):
        for norm, trainer in steps.items():
            config = trainer.config
            size = config.resolution or 32
            images = torch.randint(0, 256, (config.batch_size, 3, size, size), dtype=torch.uint8)
            batches = itertools.repeat((images, torch.arange(config.batch_size) % 10))
            start = time.perf_counter()
            trainer.train_step(batches, 10**6, 10**6)
            if k >= 2:
                times[norm].append(time.perf_counter() - start)
    return {norm: statistics.median(values) for norm, values in times.items()}


def pair(text):
    """``KEY=VALUE`` of a command line."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not like KEY=VALUE")
    return key, value


def _figure(panels):
    size = (5.6 * panels + 0.4, 4)
    figure, axes = pyplot().subplots(
        1, panels, figsize=size, squeeze=False, layout="constrained", sharey=True
    )
    for panel in axes[0]:
        panel.grid(alpha=0.3)
    return figure, axes[0]


def _styles():
    return [{"color": c, "marker": m} for c, m in zip(COLOURS, MARKERS, strict=True)]


def _save(figure, out):
    save_figure(figure, out, dpi=130)
    print(out)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("table", table), ("plot", plot), ("cost", cost), ("time", time_steps)):
        command = commands.add_parser(name, help=function.__doc__.splitlines()[0])
        command.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a sweep")
        command.add_argument(
            "--where", type=pair, action="append", default=[], metavar="KEY=VALUE", help=WHERE
        )
        command.set_defaults(function=function)
        if name == "table":
            command.add_argument("--rows", default="norm", metavar="KEY")
        if name in ("table", "time"):
            command.add_argument("--columns", required=True, metavar="KEY")
        if name == "plot":
            command.add_argument("--x", required=True, metavar="KEY")
        if name in ("plot", "cost"):
            command.add_argument("--out", required=True, metavar="FILE.png")
            command.add_argument(
                "--force", action="store_true", help="replace a file of another kind"
            )
        if name == "time":
            command.add_argument("--rounds", type=count, default=5)
            command.add_argument("--threads", type=count, default=1)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    return run_command(lambda: args.function(args))


if __name__ == "__main__":
    sys.exit(main())
