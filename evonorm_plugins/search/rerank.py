"""The best layers of a search once more, on a whole model (paper, Section 4.2)."""

from pathlib import Path

import yaml

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.files import replacing


def write_sweep(store, config, folder, *, count=10, norms=()):
    """Write a sweep that trains a model with each of the best layers.

    Args:
        store: :class:`Store`.
        config: path of a classifier's config: model, data, schedule. With ``holdout`` in it,
            images held out of the training set decide, as in the paper.
        folder: gets ``layers/NUMBER.json``, ``sweep.yaml`` and the sweep's results.
        count: of the best layers.
        norms: names of other layers to train beside them.

    Returns:
        The path of the sweep's file, for :func:`evonorm_plugins.classification.sweep.main`.

    Raises:
        ConfigError: no candidate has passed.
        FileNotFoundError: there is no such config.
    """
    config, folder = Path(config), Path(folder).absolute()
    if not config.is_file():
        raise FileNotFoundError(f"there is no config file {config}")
    best = store.best(count)
    if not best:
        raise ConfigError(f"no candidate of {store.path} has passed yet")
    (folder / "layers").mkdir(parents=True, exist_ok=True)
    layers = []
    for candidate in best:
        layers.append(str(folder / "layers" / f"{candidate.number}.json"))
        candidate.export(layers[-1])
    sweep = {
        "base": str(config.absolute()),
        "search": {"norm": [*layers, *norms]},
        "trials": None,
        "output_dir": str(folder),
    }
    path = folder / "sweep.yaml"
    with replacing(path) as partial:
        partial.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path
