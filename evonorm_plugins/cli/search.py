"""The command line of ``tools/search.py``."""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from evonorm_plugins.errors import (
    ConfigError,
    DataError,
    GraphError,
    RayError,
    RunError,
    StoreError,
)
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.known import KNOWN, REJECTED
from evonorm_plugins.layers.graph.parse import parse
from evonorm_plugins.search import report
from evonorm_plugins.search.config import from_dict, load_config
from evonorm_plugins.search.evaluate import evaluate
from evonorm_plugins.search.rerank import write_sweep
from evonorm_plugins.search.run import run_search, say
from evonorm_plugins.search.simulated import run_simulation
from evonorm_plugins.search.store import Candidate, Store
from evonorm_plugins.training.cluster import end_process
from evonorm_plugins.training.config import read_values

EXAMPLES = """
examples:
  an hour on this machine:
    tools/search.py run --config configs/search/B.yaml data=cifar10-train.zip hours=1
  on a Ray cluster whose machines see the same files; the same command again with --resume goes on:
    tools/search.py run --config configs/search/S.yaml --address HOST:6379 \\
        data=/data/cifar10-train.zip candidates=100000 workers=5000
  what it found so far, while it runs or after it:
    tools/search.py top output/search.sqlite
    tools/search.py show output/search.sqlite
    tools/search.py show output/search.sqlite 1234
  a layer as a norm of Detectron2 and BigGAN (NORM: path/to/layer.json):
    tools/search.py export output/search.sqlite 1234 layer.json
  evolution beside random search:
    tools/search.py plot top evolution=a.sqlite random=b.sqlite --out top.png
  one layer, as it would fare as a candidate: a formula, a file, or a name such as EvoNormB0:
    tools/search.py try "x * sigmoid(v1 * x) / std_{w,h,c/g}(x)" --config configs/search/B.yaml \\
        data=cifar10-train.zip
  a formula as a layer file:
    tools/search.py layer "tanh(max(x, tanh(x)))" layer.json
  the ten best on a whole model, images of the training set held out to decide:
    tools/search.py rerank output/search.sqlite --config configs/cifar10_resnet50_EvoNormS0.yaml \\
        --out output/rerank --norms BN-ReLU EvoNormB0 data=cifar10-train.zip holdout=5000
  the driver alone, with candidates that only wait:
    tools/search.py simulate --workers 5000 --candidates 50000 --seconds 60

exit status: 0 done, 1 failed or stopped, 2 bad input
"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="tools/search.py",
        description="Search for norm-activation layers, and look at what was found.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, text):
        return commands.add_parser(name, help=text, description=text)

    run = command("run", "Search, from the beginning or from where it stopped.")
    run.add_argument("--config", required=True, metavar="FILE", help="YAML file of configs/")
    run.add_argument("--resume", action="store_true", help="go on with the search in the store")
    run.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster; else this machine")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="options over the file's")

    attempt = command("try", "Put one layer through the filters and train it, as a search does.")
    attempt.add_argument("layer", help="formula, file of a layer, or name of one of the paper's")
    attempt.add_argument("--config", required=True, metavar="FILE", help="YAML file of configs/")
    attempt.add_argument("--threads", type=_positive, default=1)
    attempt.add_argument("--json", action="store_true", help="the result as JSON")
    attempt.add_argument("overrides", nargs="*", metavar="key=value")

    layer = command("layer", "Write a formula as a layer file, which every NORM option takes.")
    layer.add_argument("formula", help='such as "x / max(std_{b,w,h}(x), v1 * x + std_{w,h}(x))"')
    layer.add_argument("out", type=Path)

    top = command("top", "The best layers of a search.")
    top.add_argument("store", type=Path)
    top.add_argument("--count", type=_positive, default=report.TOP)
    top.add_argument("--json", action="store_true", help="the results as JSON")

    show = command("show", "One candidate; without a number, the whole search in numbers.")
    show.add_argument("store", type=Path)
    show.add_argument("number", type=int, nargs="?")
    show.add_argument("--json", action="store_true", help="the same as JSON")

    export = command("export", "Write a candidate as a layer file, which every NORM option takes.")
    export.add_argument("store", type=Path)
    export.add_argument("number", type=int)
    export.add_argument("out", type=Path)

    plot = command("plot", "Pictures of one search, or of several side by side.")
    plot.add_argument("figure", choices=report.FIGURES)
    plot.add_argument("stores", nargs="+", metavar="LABEL=STORE")
    plot.add_argument("--out", type=Path, required=True)

    rerank = command("rerank", "Train a whole model with each of the best layers: a sweep.")
    rerank.add_argument("store", type=Path)
    rerank.add_argument("--config", type=Path, required=True, help="of tools/train_classifier.py")
    rerank.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the sweep")
    rerank.add_argument("--count", type=_positive, default=report.TOP)
    rerank.add_argument("--norms", nargs="+", default=[], help="other layers beside them")
    rerank.add_argument("--resume", action="store_true", help="go on with the sweep in the folder")
    rerank.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster")
    rerank.add_argument("overrides", nargs="*", metavar="key=value", help="options over the file's")

    simulate = command("simulate", "Try the driver with workers that only wait; no training.")
    simulate.add_argument("--workers", type=_positive, default=5000)
    simulate.add_argument("--candidates", type=_positive, default=20_000)
    simulate.add_argument("--seconds", type=float, default=60.0, help="mean of one that passes")
    simulate.add_argument("--processes", type=_positive, default=10, help="that hold the workers")
    simulate.add_argument("--random", action="store_true", help="random search, not evolution")
    simulate.add_argument("--store", type=Path, help="keep the results; else they are discarded")
    args, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in args or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # key=value after another option
        args.overrides += rest
    return args


def main(argv=None):
    """Run the command line; returns the exit status."""
    args = parse_args(argv)
    try:
        return _COMMANDS[args.command](args) or 0
    except (ConfigError, DataError, FileNotFoundError, FileExistsError, GraphError) as error:
        say(f"error: {error}")
        return 2
    except (RayError, RunError, StoreError, OSError) as error:
        say(f"error: {error}")
        return 1


def _run(args):
    config = load_config(args.config, args.overrides)
    print(run_search(config, address=args.address, resume=args.resume, on_hang=end_process))


def _try(args):
    graph = _layer(args.layer)
    values = read_values(args.config, args.overrides)
    config = from_dict({"candidates": 1, **values})
    torch.set_num_threads(args.threads)
    found = evaluate(graph, config, progress=lambda stage: say(f"{stage} ..."))
    if args.json:
        print(json.dumps({"formula": str(graph), **dataclasses.asdict(found)}))
        return
    values = dataclasses.asdict(found)
    del values["cpu_seconds"]
    status = "passed" if found.filter is None else "rejected"
    print(report.describe(Candidate(None, graph, status=status, **values)))


def _layer(text):
    known = {**KNOWN, **REJECTED}
    if text in known:
        return known[text]
    if text.endswith(".json"):
        return Graph.load(text)
    try:
        return parse(text)
    except GraphError as error:
        raise GraphError(
            f"{error} (a layer is a formula, a .json file or one of {', '.join(known)})"
        ) from None


def _write_layer(args):
    graph = parse(args.formula)
    _save_layer(args.out, graph, graph.save)


def _top(args):
    with Store(args.store) as store:
        best = store.best(args.count)
    if args.json:
        print(json.dumps([report.plain(candidate) for candidate in best]))
    else:
        print(report.table(best) if best else "no candidate has passed yet")


def _show(args):
    with Store(args.store) as store:
        if args.number is not None:
            candidate = _candidate(store, args.number)
            print(json.dumps(report.plain(candidate)) if args.json else report.describe(candidate))
            return
        cpus = store.config.get("cpus_per_worker", 1)
        if args.json:
            print(json.dumps(report.numbers(store, cpus)))
        else:
            print(report.summary(store, cpus))


def _export(args):
    with Store(args.store) as store:
        candidate = _candidate(store, args.number)
    _save_layer(args.out, candidate.graph, candidate.export)


def _save_layer(path, graph, save):
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path)
    say(f"{path}: {graph}; NORM: {path} in a config")


def _plot(args):
    searches = {}
    for text in args.stores:
        label, equals, path = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not of the form LABEL=STORE")
        with Store(path) as store:
            searches[label] = store.finished()
    everything = [c for candidates in searches.values() for c in candidates]
    if args.figure == "quality":
        if not any("quality" in c.details for c in everything):
            raise ConfigError(f"no candidate of {' '.join(args.stores)} came to the quality filter")
    elif not any(c.scores for c in everything):
        raise ConfigError(f"no candidate of {' '.join(args.stores)} has passed yet")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report.FIGURES[args.figure](searches, args.out)


def _rerank(args):
    from evonorm_plugins.classification import sweep

    with Store(args.store) as store:
        path = write_sweep(store, args.config, args.out, count=args.count, norms=args.norms)
    return sweep.main(path, args.overrides, resume=args.resume, address=args.address)


def _simulate(args):
    if args.seconds <= 0:
        raise ConfigError(f"--seconds {args.seconds:g} must be above 0")
    print(
        run_simulation(
            args.workers,
            args.candidates,
            args.seconds,
            processes=args.processes,
            random_share=1.0 if args.random else 0.5,
            path=args.store,
            on_hang=end_process,
        )
    )


def _candidate(store, number):
    try:
        return store[number]
    except KeyError as error:
        raise ConfigError(error.args[0]) from None


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


_COMMANDS = {
    "run": _run,
    "try": _try,
    "layer": _write_layer,
    "top": _top,
    "show": _show,
    "export": _export,
    "plot": _plot,
    "rerank": _rerank,
    "simulate": _simulate,
}
