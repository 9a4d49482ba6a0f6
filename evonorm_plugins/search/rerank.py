"""The best layers of a search once more, on whole models (paper, Section 5.2).

A sweep trains every model with every layer; the mean of a layer's accuracies is its new rank.
"""

import dataclasses
import tempfile
from pathlib import Path

import yaml

from evonorm_plugins.classification.config import from_dict
from evonorm_plugins.classification.sweep import load_sweep
from evonorm_plugins.configs import find_config
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.files import check_folder, replacing
from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.registry import registered_name
from evonorm_plugins.search.find import find_layer
from evonorm_plugins.training.config import read_overrides, read_values, to_dict

# Layers of a search that are reranked, and those of them that are kept.
COUNT, KEEP = 10, 3
# The searched key whose values are models, with what else their configs have of their own.
NETWORK = "network"


@dataclasses.dataclass
class Contender:
    """A layer to rerank.

    ``name`` is that of a registered layer, or of the file that is written for the graph, without
    ``.json``. ``about`` is kept in files of the layer.
    """

    name: str
    graph: Graph
    about: dict = dataclasses.field(default_factory=dict)

    def norm(self, folder):
        """What a config has as ``norm``; ``folder`` is that of the sweep."""
        if registered_name(self.name):
            return self.name
        return str(Path(folder, "layers", f"{self.name}.json"))

    def save(self, path):
        self.graph.canonical().save(path, about=self.about)


def best_of(store, count=COUNT):
    """The best layers of a :class:`Store`, equal ones once.

    Raises:
        ConfigError: no candidate has passed.
    """
    best = store.best(count)
    if not best:
        raise ConfigError(f"no candidate of {store.path} has passed yet")
    return [
        Contender(str(c.number), c.graph, {"candidate": c.number, "scores": c.scores}) for c in best
    ]


def named(layers):
    """Contenders of what :func:`find_layer` takes, equal ones once, the first one's name.

    Raises:
        GraphError: there is no such layer.
    """
    found = {}
    for number, text in enumerate(layers, 1):
        graph = find_layer(text)
        name = registered_name(text) or f"layer{number}"
        found.setdefault(graph.digest(), Contender(name, graph, {"layer": text}))
    return list(found.values())


def write_sweep(contenders, configs, folder, *, norms=(), seeds=(), overrides=(), resume=False):
    """Write a sweep that trains every model with each layer.

    Args:
        contenders: :class:`Contender` of each layer.
        configs: paths or names of classifiers' configs: models, data, schedules. With ``holdout``
            in them, images held out of the training set decide, as in the paper.
        folder: gets ``layers/NAME.json``, ``sweep.yaml`` and the sweep's results.
        norms: names of other layers to train beside them, each of them once.
        seeds: of the trainings of each; none: that of the configs.
        overrides: ``key=value`` strings that the sweep is run with; they win over the configs'.
        resume: leave the sweep in the folder, if there is one, as it is. One that never began is
            written anew in any case.

    Returns:
        The path of the sweep's file, for :func:`evonorm_plugins.classification.sweep.load_sweep`.

    Raises:
        ConfigError: there is no such config, option or norm, two configs are the same, the folder
            holds something else, or a sweep of other layers.
    """
    configs = [find_config(name, "classification").absolute() for name in configs]
    folder = Path(folder).absolute()
    path = folder / "sweep.yaml"
    given = read_overrides(overrides)
    if "norm" in given:
        raise ConfigError(f"norm={given['norm']} is what is reranked: name other layers as --norms")
    networks = _networks(configs, given)
    check_folder(folder, name="--out")
    search = {"norm": list(dict.fromkeys(c.norm(folder) for c in contenders))}
    beside = dict.fromkeys(registered_name(name) or name for name in norms)
    beside = [name for name in beside if name not in search["norm"]]
    search["norm"] += beside
    search |= {NETWORK: networks} if networks else {}
    search |= {"seed": list(seeds)} if seeds else {}
    base = str(configs[0])
    sweep = {"base": base, "search": search, "trials": None, "output_dir": str(folder)}
    _check(sweep, beside, overrides)
    begun = (folder / "sweep.json").exists()
    if begun and path.is_file() and resume:
        if read_values(path) != sweep:
            raise ConfigError(
                f"--out {folder} holds a sweep of other layers or of another config; it goes on "
                f"with: evonorm sweep --resume --config {path}"
            )
        return path
    if folder.is_dir() and any(folder.iterdir()) and (begun or not path.is_file()):
        raise ConfigError(
            f"--out {folder} is not empty: go on with the sweep in it with --resume, or name "
            "another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for contender in contenders:
        norm = contender.norm(folder)
        if norm != contender.name:
            contender.save(norm)
    return _write(path, sweep)


def _check(sweep, norms, overrides):
    """What is wrong is said before there are files, those of the layers among them."""
    with tempfile.TemporaryDirectory() as folder:
        search = {**sweep["search"], "norm": norms or ["BN-ReLU"]}
        load_sweep(_write(Path(folder, "sweep.yaml"), {**sweep, "search": search}), overrides)


def _write(path, sweep):
    with replacing(path) as partial:
        partial.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path


def _networks(configs, overrides):
    """``{name: {key: value}}`` of what several configs do not have in common; of one, nothing."""
    values = [to_dict(from_dict(read_values(path))) for path in configs]
    if len(configs) == 1:
        return {}
    own = [k for k in values[0] if any(v[k] != values[0][k] for v in values)]
    own = [k for k in own if k not in ("norm", "output_dir", *overrides)]
    parts = [{k: v[k] for k in own} for v in values]
    for k, part in enumerate(parts):
        if part in parts[:k] or not own:
            raise ConfigError(
                f"--config {configs[k]} differs from another one in nothing but its norm"
            )
    models = [v["model"] for v in values]
    names = models if len({*models}) == len(models) else [path.stem for path in configs]
    if len({*names}) < len(names):
        names = list(map(str, configs))
    return dict(zip(names, parts, strict=True))


def keep(ranks, contenders, folder, count=KEEP):
    """Write the best contenders as ``top/1.json`` and so on; returns ``{norm: path}`` of these.

    Layers that were trained beside the contenders are not kept.

    Args:
        ranks: of :func:`evonorm_plugins.search.ranking.ranking`.
        folder: of the sweep.
    """
    by_norm = {c.norm(folder): c for c in contenders}
    best = [r.norm for r in ranks if r.norm in by_norm and r.mean is not None][:count]
    for old in Path(folder, "top").glob("*.json"):
        old.unlink()
    kept = {norm: Path(folder, "top", f"{k}.json") for k, norm in enumerate(best, 1)}
    for norm, path in kept.items():
        by_norm[norm].save(path)
    return {norm: str(path) for norm, path in kept.items()}
