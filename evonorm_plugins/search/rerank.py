"""The best layers of a search once more, on a whole model (paper, Section 5.2)."""

from pathlib import Path

import yaml

from evonorm_plugins.configs import find_config
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.files import check_folder, replacing
from evonorm_plugins.training.config import read_values


def write_sweep(store, config, folder, *, count=10, norms=(), resume=False):
    """Write a sweep that trains a model with each of the best layers.

    Args:
        store: :class:`Store`.
        config: path or name of a classifier's config: model, data, schedule. With ``holdout`` in
            it, images held out of the training set decide, as in the paper.
        folder: gets ``layers/NUMBER.json``, ``sweep.yaml`` and the sweep's results.
        count: of the best layers.
        norms: names of other layers to train beside them.
        resume: leave the sweep in the folder, if there is one, as it is.

    Returns:
        The path of the sweep's file, for :func:`evonorm_plugins.classification.sweep.main`.

    Raises:
        ConfigError: no candidate has passed, there is no such config, the folder holds something
            else, or a sweep of other layers.
    """
    config, folder = find_config(config, "classification"), Path(folder).absolute()
    path = folder / "sweep.yaml"
    read_values(config)  # what is wrong with it is said before anything is written
    check_folder(folder, name="--out")
    best = store.best(count)
    if not best:
        raise ConfigError(f"no candidate of {store.path} has passed yet")
    layers = {str(folder / "layers" / f"{c.number}.json"): c for c in best}
    sweep = {
        "base": str(config.absolute()),
        "search": {"norm": [*layers, *norms]},
        "trials": None,
        "output_dir": str(folder),
    }
    if path.is_file() and resume:
        if read_values(path) != sweep:
            raise ConfigError(
                f"--out {folder} holds a sweep of other layers or of another config; it goes on "
                f"with: evonorm sweep --resume --config {path}"
            )
        return path
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"--out {folder} is not empty: go on with the sweep in it with --resume, or name "
            "another folder"
        )
    (folder / "layers").mkdir(parents=True, exist_ok=True)
    for file, candidate in layers.items():
        candidate.export(file)
    with replacing(path) as partial:
        partial.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path
