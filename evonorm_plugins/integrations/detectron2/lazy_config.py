"""LazyConfigs: Python files that describe a run; loaded, overridden, checked before any work.

A run needs of one what Detectron2's ``lazyconfig_train_net.py`` does: ``model``, ``train``,
``optimizer``, ``lr_multiplier`` and ``dataloader`` with ``train``, ``test`` and ``evaluator``.
"""

import builtins
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from evonorm_plugins.errors import ConfigError, reason, shown
from evonorm_plugins.integrations.detectron2.config import (
    MODEL_ZOO,
    as_config_errors,
    check_norm,
    is_of_model_zoo,
    scaled_rate,
)
from evonorm_plugins.registry import is_norm_act
from evonorm_plugins.training.ranks import pick_device

# What `default_setup` reads, and the files of the model zoo do not set.
_MORE_OF_TRAIN = ("train.seed", "train.cudnn_benchmark", "train.float32_precision")
_LEAST = {
    "train.max_iter": 1,
    "train.eval_period": 0,
    "train.log_period": 1,
    "train.checkpointer.period": 1,
    "dataloader.train.total_batch_size": 1,
    "dataloader.train.num_workers": 0,
    "dataloader.test.num_workers": 0,
}


def load_lazy_config(
    path: str | os.PathLike, overrides: Sequence[str] = (), *, trust: bool = False
) -> tuple[DictConfig, list[str]]:
    """The configuration of a Python file and of what a command line sets.

    Args:
        path: of the file. To load it is to run it.
        overrides: ``key=value``, in Hydra's grammar; names of norms may have options. A key must
            be there, or be an argument of what is called there; ``+key=value`` adds any.
        trust: run it though it is not of Detectron2's model zoo.

    Returns:
        ``(cfg, notes)``: the config, with the rate of SGD scaled to the batch and the device that
        is there, and sentences on what was changed.

    Raises:
        ConfigError: names the file, the override or the key.
    """
    path = Path(path)
    if not (trust or is_of_model_zoo(path)):
        raise ConfigError(
            f"{path} is a program, which would run with all your rights: if you trust the file, "
            "give --trust-config"
        )
    cfg = _run_file(path)
    for part in ("model", "train"):
        if not isinstance(cfg.get(part), DictConfig):
            raise ConfigError(f"{path} is no config of a run: it defines no {part!r}")
    usual = LazyConfig.load(str(MODEL_ZOO / "common/train.py"), "train")
    cfg.train = OmegaConf.merge(usual, cfg.train)
    before = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    given = [_override(cfg, text) for text in overrides]
    notes = _scale_rate(cfg, before, given)
    wants_gpu = str(cfg.train.device).startswith("cuda") and "train.device" not in given
    if wants_gpu and not torch.cuda.is_available():
        cfg.train.device = "cpu"
        notes.append("torch sees no CUDA device: running on the CPU.")
    return cfg, notes


def _run_file(path: Path) -> DictConfig:
    imports = builtins.__import__
    try:
        return LazyConfig.load(str(path))
    except SyntaxError as error:
        # Detectron2's own error names the file, its cause the line.
        cause = error.__cause__ if isinstance(error.__cause__, SyntaxError) else error
        raise ConfigError(f"{path} is not Python: line {cause.lineno}: {cause.msg}") from None
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror or reason(error)}") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
        where = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{where}: {type(error).__name__}: {reason(error)}") from error
    finally:
        builtins.__import__ = imports  # Detectron2 leaves its own behind where a config fails


def _override(cfg: DictConfig, text: str) -> str:
    """Apply one override; returns its key."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip("+"):
        raise ConfigError(f"options of a LazyConfig are key=value; got {text!r}")
    name = key.removeprefix("+")
    if not (key.startswith("+") or name in _MORE_OF_TRAIN or _has(cfg, name)):
        raise ConfigError(f"{name!r} is not in the config; +{text} adds it")
    if is_norm_act(value):
        text = f"{key}='{value}'"  # Hydra would take its options for a call
    try:
        LazyConfig.apply_overrides(cfg, [text])
    except Exception as error:  # Hydra's or OmegaConf's
        raise ConfigError(f"option {text}: {reason(error)}") from error
    return name


def _has(cfg: DictConfig, key: str) -> bool:
    above, _, name = key.rpartition(".")
    try:
        node = OmegaConf.select(cfg, above) if above else cfg
    except Exception:  # it leads to a value that lacks
        return False
    if isinstance(node, ListConfig):
        return name.isdigit() and int(name) < len(node)
    # Not `name in node`, which is false for a value that is still to be given.
    return isinstance(node, DictConfig) and not {name, "_target_"}.isdisjoint(list(node))


def _scale_rate(cfg: DictConfig, before: Any, given: Sequence[str]) -> list[str]:
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    optimizer = cfg.get("optimizer")
    is_sgd = isinstance(optimizer, DictConfig) and optimizer.get("_target_") is torch.optim.SGD
    numbers = all(isinstance(n, int) and n > 0 for n in (before, batch))
    if not (is_sgd and numbers) or batch == before or "optimizer.lr" in given:
        return []
    optimizer.lr, note = scaled_rate("optimizer.lr", optimizer.lr, before, batch)
    return [f"{note} The number of steps is left at {cfg.train.max_iter}."]


def check_lazy_config(cfg: DictConfig, *, training: bool = True) -> None:
    """Find what is wrong with a configuration; its model is built, without memory.

    Args:
        cfg: names sets that are registered.
        training: whether it is to be trained, not evaluated alone.

    Raises:
        ConfigError: names the key and what would be right.
    """
    needed = ["dataloader.test", "dataloader.evaluator"]
    if training:
        needed = ["dataloader.train", "optimizer.params", "lr_multiplier"]
    for key in needed:
        if OmegaConf.select(cfg, key) is None:
            raise ConfigError(f"the config has no {key!r}")
    for key, least in _LEAST.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and (not isinstance(value, int) or value < least):
            raise ConfigError(f"{key} {shown(value)} must be an integer of at least {least}")
    try:
        pick_device(cfg.train.device)
    except ConfigError as error:
        raise ConfigError(f"train.device {cfg.train.device}: {error}") from None
    for path, norm in norms(cfg):
        check_norm(path, norm)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the run itself builds all of it once more
    try:
        model = _check_model(cfg)
        _check_parts(cfg, model, training)
    finally:
        logging.disable(level)


def _check_model(cfg: DictConfig) -> nn.Module:
    try:
        with torch.device("meta"):
            model = instantiate(cfg.model)
    except Exception:  # whatever is wrong, or a model of the user's that needs numbers
        with as_config_errors("the model cannot be built from the config"):
            model = instantiate(cfg.model)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model gives a {type(model).__name__}, no torch.nn.Module")
    return model


def _check_parts(cfg: DictConfig, model: nn.Module, training: bool) -> None:
    if training:
        with as_config_errors("the optimizer cannot be built from the config"):
            build_optimizer(cfg, model)
        with as_config_errors("lr_multiplier cannot be built from the config"):
            schedule = instantiate(cfg.lr_multiplier)
        if not isinstance(schedule, ParamScheduler):
            raise ConfigError(f"lr_multiplier gives a {type(schedule).__name__}, no ParamScheduler")
    for split in ("train", "test") if training else ("test",):
        if (mapper := OmegaConf.select(cfg, f"dataloader.{split}.mapper")) is not None:
            with as_config_errors(f"dataloader.{split}.mapper cannot be built"):
                instantiate(mapper)
    if evaluates(cfg):
        with as_config_errors("dataloader.evaluator cannot be built"):
            instantiate(cfg.dataloader.evaluator)


def evaluates(cfg: DictConfig) -> bool:
    """Whether a config has a set to evaluate on, and how."""
    return all(OmegaConf.select(cfg, f"dataloader.{k}") is not None for k in ("test", "evaluator"))


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a config for a model, which the config does not keep."""
    cfg.optimizer.params.model = model
    try:
        return instantiate(cfg.optimizer)
    finally:
        cfg.optimizer.params.model = None


def norms(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """``(key, name)`` of every norm that a config's model names."""
    yield from _find(cfg.model, "model", lambda key, v: isinstance(v, str) and key.endswith("norm"))


def frozen_stages(cfg: DictConfig) -> Iterator[tuple[str, int]]:
    """``(key, value)`` of what freezes stages of a config's model."""
    yield from _find(cfg.model, "model", lambda key, value: key == "freeze_at" and value)


def _find(node: Any, path: str, wanted: Callable) -> Iterator[tuple[str, Any]]:
    if isinstance(node, ListConfig):
        for k, value in enumerate(node):
            yield from _find(value, f"{path}.{k}", wanted)
    elif isinstance(node, DictConfig):
        for key in node:
            # An interpolation is found where it leads to, and that may not be there yet.
            if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
                continue
            if wanted(str(key), node[key]):
                yield f"{path}.{key}", node[key]
            yield from _find(node[key], f"{path}.{key}", wanted)


def set_lazy_datasets(cfg: DictConfig, split: str, name: str) -> None:
    """Let a config's ``train`` or ``test`` set be the one registered as ``name``.

    Raises:
        ConfigError: the config does not name sets, or its model needs more of one than boxes and
            masks.
    """
    node = OmegaConf.select(cfg, f"dataloader.{split}.dataset")
    option = "--train-json" if split == "train" else "--val-json"
    if not isinstance(node, DictConfig) or "names" not in node:
        raise ConfigError(
            f"{option}: dataloader.{split}.dataset of the config has no 'names', which it would set"
        )
    more = [key for key in ("keypoint_head", "sem_seg_head") if _holds(cfg.model, key)]
    if more:
        raise ConfigError(
            f"{option} gives boxes and masks, and the model has a {more[0]}: let the config itself "
            "register the set and name it"
        )
    node.names = name
    if split == "test" and OmegaConf.select(cfg, "dataloader.evaluator.dataset_name") is not None:
        cfg.dataloader.evaluator.dataset_name = name


def _holds(node: Any, wanted: str) -> bool:
    return any(_find(node, "", lambda key, _: key == wanted))


def number_of_classes(cfg: DictConfig) -> tuple[str, int] | None:
    """``(key, value)`` of how many classes the model tells apart, where the config says it."""
    for key in ("model.roi_heads.num_classes", "model.num_classes"):
        if isinstance(value := OmegaConf.select(cfg, key), int):
            return key, value
    return None


def dataset_names(cfg: DictConfig, split: str) -> list[str]:
    """Names of the sets of ``dataloader.train`` or ``dataloader.test``, where it has names."""
    names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names") or []
    return [names] if isinstance(names, str) else list(names)
