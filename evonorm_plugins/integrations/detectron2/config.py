"""A run's configuration: read without running code it holds, checked before any work is done."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
import yaml
from detectron2.config import CfgNode, downgrade_config, get_cfg, upgrade_config
from detectron2.config.compat import guess_version
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.transforms import AugInput
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import build_lr_scheduler
from PIL import Image

from evonorm_plugins.configs import find_config
from evonorm_plugins.errors import ConfigError, DataError, InputError, reason
from evonorm_plugins.integrations.detectron2.data import NamingMapper
from evonorm_plugins.integrations.detectron2.keys import add_evonorm_config, remove_idle_keys
from evonorm_plugins.integrations.detectron2.norms import checked_norm
from evonorm_plugins.integrations.detectron2.tasks import value_of
from evonorm_plugins.integrations.detectron2.trainer import Trainer
from evonorm_plugins.registry import is_norm_act, try_norm_act
from evonorm_plugins.training.ranks import pick_device

# Its files are as trustworthy as its code, and some hold expressions in Python.
MODEL_ZOO = Path(detectron2.__file__).parent.joinpath("model_zoo/configs").resolve()
_CHOICES = {
    "SOLVER.LR_SCHEDULER_NAME": (
        *("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    ),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "DATALOADER.SAMPLER_TRAIN": (
        *("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
        *("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"),
    ),
}
_LEAST = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.BASE_LR": 0,
    "SOLVER.WARMUP_ITERS": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.EVAL_PERIOD": 0,
}
_MOST = 2**31  # what C calls an int
_SEEDS = 2**32  # NumPy's are smaller
# yacs raises AssertionError for keys that do not exist, and whatever comes for files that are none.
_MISTAKES = (
    *(AssertionError, AttributeError, KeyError, IndexError, TypeError, ValueError, OSError),
    *(RecursionError, MemoryError, RuntimeError, ImportError, yaml.YAMLError),
)


def is_of_model_zoo(path: str | os.PathLike) -> bool:
    """Whether a file is a config that came with Detectron2."""
    return MODEL_ZOO in Path(path).resolve().parents


def find_config_file(name_or_path: str | os.PathLike) -> Path:
    """Path of a config: of a file, of one of this package's or of Detectron2's model zoo.

    Raises:
        ConfigError: see :func:`find_config`.
    """
    of_zoo = MODEL_ZOO / name_or_path
    if not os.path.isfile(name_or_path) and of_zoo.is_file():
        return of_zoo
    return find_config(name_or_path, "detectron2")


def is_lazy(path: str | os.PathLike) -> bool:
    """Whether a config file is a program; the others are YAML."""
    return os.fspath(path).endswith(".py")


class _SafeConfig(CfgNode):
    """Builds Python objects (``!!python/...``) for Detectron2's own files alone."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        unsafe = allow_unsafe or is_of_model_zoo(filename)
        try:
            values = super().load_yaml_with_base(filename, allow_unsafe=unsafe)
        except InputError:
            raise
        except yaml.constructor.ConstructorError as error:
            raise ConfigError(
                f"{filename} cannot be read: {reason(error)}. Plain values are read; anything else "
                "could run the code of whoever wrote it: if you trust the file, give "
                "--trust-config"
            ) from None
        except RecursionError:
            raise ConfigError(
                f"{filename} is nested too deeply, or _BASE_ leads back to the file itself"
            ) from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{filename} is not YAML: {reason(error)}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{filename} is not UTF-8 text: {error.reason}") from None
        except OSError as error:
            raise ConfigError(f"config file {filename}: {error.strerror}") from None
        except (AttributeError, TypeError):
            values = None
        if not isinstance(values, dict):
            raise ConfigError(
                f"{filename} is no config: it must hold keys and values, and the names of files "
                "under _BASE_"
            )
        return values


def load_config(
    path: str | os.PathLike, opts: Sequence[str] = (), *, trust: bool = False
) -> tuple[CfgNode, list[str]]:
    """The configuration of a YAML file and of what a command line sets.

    Args:
        path: of the file, or the name of one of this package's or of the model zoo; its
            ``_BASE_`` is read the same way.
        opts: keys and values in turn.
        trust: build the Python objects that the file names, which runs the code it holds.

    Returns:
        ``(cfg, notes)``: the config, with the rate scaled to the batch and the device that is
        there, and sentences on what was changed.

    Raises:
        ConfigError: names the file or the key.
    """
    path = find_config_file(path)
    if is_lazy(path):
        raise ConfigError(f"{path} is a LazyConfig, which tools/train_net.py takes; here: YAML")
    with as_config_errors(f"config file {path}"):
        loaded = CfgNode(_SafeConfig.load_yaml_with_base(str(path), allow_unsafe=trust))
        cfg = get_cfg()
        add_evonorm_config(cfg)  # for configs that have its key
        cfg = _merged(cfg, loaded, path)
    reference_batch = cfg.SOLVER.IMS_PER_BATCH
    with as_config_errors("options"):
        cfg.merge_from_list(list(opts))
    notes = [remove_idle_keys(cfg), scale_learning_rate(cfg, reference_batch, opts[::2])]
    wants_gpu = cfg.MODEL.DEVICE.startswith("cuda") and "MODEL.DEVICE" not in opts[::2]
    if wants_gpu and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        notes.append("torch sees no CUDA device: running on the CPU.")
    return cfg, [note for note in notes if note]


def _merged(cfg: CfgNode, loaded: CfgNode, path: str | os.PathLike) -> CfgNode:
    version = loaded["VERSION"] if "VERSION" in loaded else guess_version(loaded, path)
    if version == cfg.VERSION:
        cfg.merge_from_other_cfg(loaded)
        return cfg
    old = downgrade_config(cfg, to_version=version)
    old.merge_from_other_cfg(loaded)
    return upgrade_config(old)


@contextlib.contextmanager
def as_config_errors(what: str) -> Iterator[None]:
    """What goes wrong within is the config's fault: a :class:`ConfigError` that begins so."""
    try:
        yield
    except ConfigError as error:  # of a layer, which does not know where it stands
        raise ConfigError(f"{what}: {error}") from error
    except InputError:
        raise
    except _MISTAKES as error:
        hint = "a value is not of the kind that is needed: " if type(error) is TypeError else ""
        raise ConfigError(f"{what}: {hint}{reason(error)}") from error


def scale_learning_rate(
    cfg: CfgNode, reference_batch: int, given: Sequence[str] = ()
) -> str | None:
    """Scale ``SOLVER.BASE_LR`` with the batch (Goyal et al., arXiv 1706.02677, Section 2.1).

    Args:
        cfg: configuration whose ``SOLVER.IMS_PER_BATCH`` is the batch that will be used.
        reference_batch: the batch that ``SOLVER.BASE_LR`` was written for.
        given: keys that the user has set by hand; a rate among them is left alone.

    Returns:
        A sentence on what was done, or None.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch == reference_batch or "SOLVER.BASE_LR" in given:
        return None
    if batch < 1:
        raise DataError(f"SOLVER.IMS_PER_BATCH {batch} must be at least 1")
    rate = cfg.SOLVER.BASE_LR
    cfg.SOLVER.BASE_LR, note = scaled_rate("SOLVER.BASE_LR", rate, reference_batch, batch)
    return f"{note} The number of steps is left at {cfg.SOLVER.MAX_ITER}."


def scaled_rate(key: str, rate: float, reference_batch: int, batch: int) -> tuple[float, str]:
    """A rate for ``reference_batch`` images scaled to ``batch``, and a sentence that says so."""
    new = rate * batch / reference_batch
    return new, (
        f"{key} {rate:g} is for {reference_batch} images a step; with {batch} it is scaled to "
        f"{new:g}."
    )


def check_config(cfg: CfgNode, *, training: bool = True) -> None:
    """Find what is wrong with a configuration; its model is built, without memory.

    Args:
        cfg: names sets that are registered.
        training: whether it is to be trained, not evaluated alone.

    Raises:
        ConfigError: names the key and what would be right.
    """
    choices = {**_CHOICES, "MODEL.META_ARCHITECTURE": sorted(n for n, _ in META_ARCH_REGISTRY)}
    for key, allowed in choices.items():
        if value_of(cfg, key) not in allowed:
            known = ", ".join(map(str, allowed))
            raise ConfigError(f"{key} {value_of(cfg, key)!r} is not one of {known}")
    for key, least in _LEAST.items():
        value = value_of(cfg, key)
        if not least <= value < _MOST:
            limit = f"below {_MOST}" if value >= _MOST else f"at least {least}"
            raise ConfigError(f"{key} {value} must be {limit}")
    if cfg.SEED >= _SEEDS:
        raise ConfigError(f"SEED {cfg.SEED} must be below {_SEEDS}")
    try:
        pick_device(cfg.MODEL.DEVICE)
    except ConfigError as error:
        raise ConfigError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: {error}") from None
    for expected in cfg.TEST.EXPECTED_RESULTS:
        if not isinstance(expected, list | tuple) or len(expected) != 4:
            raise ConfigError(
                f"TEST.EXPECTED_RESULTS has {expected!r}; each is [task, metric, value, tolerance]"
            )
    _check_norms(cfg)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the run itself builds all of it once more
    try:
        _check_model(cfg)
        _check_images(cfg, training)
    finally:
        logging.disable(level)


def _check_norms(cfg: CfgNode) -> None:
    for path, norm in _norms(cfg.MODEL, "MODEL."):
        check_norm(path, norm)


def check_norm(key: str, norm: Any) -> None:
    """Raise ConfigError, which names the key, for what is no norm or has wrong options."""
    try:
        if is_norm_act(checked_norm(norm)):
            try_norm_act(norm, device="meta")  # its options
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {error}") from None


def _norms(node: CfgNode, path: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from _norms(value, f"{path}{key}.")
        elif key == "NORM":
            yield f"{path}{key}", value


def _check_model(cfg: CfgNode) -> None:
    build = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    try:
        with torch.device("meta"):
            model = build(cfg.clone())
    except Exception:  # whatever is wrong, or a model of the user's that needs numbers
        with as_config_errors("the model cannot be built from the config"):
            model = build(cfg.clone())
    with as_config_errors("the optimizer cannot be built from SOLVER"):
        build_lr_scheduler(cfg, Trainer.build_optimizer(cfg, model))


def _check_images(cfg: CfgNode, training: bool) -> None:
    for is_train in (False, True) if training else (False,):
        with as_config_errors("images cannot be prepared as INPUT says"):
            mapper = NamingMapper(cfg, is_train).mapper
            image = convert_PIL_to_numpy(Image.new("RGB", (48, 32)), mapper.image_format)
            mapper.augmentations(AugInput(image))
