"""What a config's task needs of its sets and of other packages: known before any work is done."""

import functools
import importlib
import inspect
import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree.ElementTree import ParseError

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from evonorm_plugins.errors import ConfigError, DataError, InputError, first, reason
from evonorm_plugins.integrations.detectron2.evaluators import (
    TYPES,
    evaluator_type,
    find_cityscapesscripts,
    type_of,
)

# What the models of an architecture give; those of other architectures are not checked.
_OUTPUTS = {
    "GeneralizedRCNN": ("instances",),
    "RetinaNet": ("instances",),
    "ProposalNetwork": ("proposals",),
    "SemanticSegmentor": ("sem_seg",),
    "PanopticFPN": ("instances", "sem_seg", "panoptic_seg"),
}
_SHOWN = {
    "instances": "objects with boxes",
    "proposals": "proposals of boxes",
    "sem_seg": "a class for every pixel",
    "panoptic_seg": "panoptic segments",
}
_INSTALL = {"panopticapi": "git+https://github.com/cocodataset/panopticapi"}
# What of a package the evaluator imports.
_IMPORTED = {
    "panopticapi": "panopticapi.evaluation",
    "cityscapesscripts": "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling",
    "shapely": "shapely.geometry",
}
_COCO_KEYPOINTS = 17
# What Detectron2's functions raise for files that are not as they should be.
_UNREADABLE = (
    *(AssertionError, AttributeError, ImportError, LookupError, OSError, TypeError, ValueError),
    ParseError,
)


def outputs_of(cfg: CfgNode) -> tuple[str, ...] | None:
    """Names of what the model of a config gives for an image; None where that is not known."""
    return _OUTPUTS.get(cfg.MODEL.META_ARCHITECTURE)


def class_key(cfg: CfgNode, output: str) -> str:
    """The key of the number of classes of "instances" or of "sem_seg"."""
    if output == "sem_seg":
        return "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    part = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    return f"MODEL.{part}.NUM_CLASSES"


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key with points in it."""
    return functools.reduce(operator.getitem, key.split("."), cfg)


def check_tasks(cfg: CfgNode, *, training: bool, machines: int = 1) -> None:
    """Find what the sets of a config and their evaluators lack for its task.

    The test sets are read, except for Cityscapes' instances, which takes minutes.

    Args:
        cfg: names sets that are registered, whose files are there.
        training: whether it is to be trained, not evaluated alone.
        machines: how many take part.

    Raises:
        ConfigError: the config asks for what there is not.
        DataError: a set cannot be used for it.
    """
    if training and not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty, there is nothing to learn from")
    for name in cfg.DATASETS.TRAIN if training else ():
        _check_packages(name, evaluated=False)
        _check_labels(cfg, name)
    for name in cfg.DATASETS.TEST:
        _check_packages(name, evaluated=True)
        _check_evaluation(cfg, name)
        if machines > 1 and evaluator_type(name).startswith("cityscapes"):
            raise ConfigError(
                f"--num-machines {machines}: Detectron2 evaluates Cityscapes ({name}) on one "
                'machine alone; train with DATASETS.TEST "()", then evaluate on one'
            )
    for name in cfg.DATASETS.TEST:
        if evaluator_type(name) != "cityscapes_instance":
            with reading(name):
                records = DatasetCatalog.get(name)
            _check_files(name, records)
        _check_classes(cfg, name)
    _check_keypoints(cfg, training)
    _check_augmentation(cfg)
    _check_expected(cfg)


@contextmanager
def reading(*names: str) -> Iterator[None]:
    """Errors of Detectron2 while it reads sets, as DataErrors that name them.

    Cityscapes' scripts are found within, and from then on.
    """
    if any(evaluator_type(name).startswith("cityscapes") for name in names):
        find_cityscapesscripts()
    try:
        yield
    except InputError:
        raise
    except _UNREADABLE as error:
        which = f"the dataset {names[0]}" if len(names) == 1 else f"the datasets {first(names)}"
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        raise DataError(f"{which} cannot be used: {kind}{reason(error)}") from error


def _check_packages(name: str, *, evaluated: bool) -> None:
    kind = evaluator_type(name)
    needed = []
    if evaluated or kind in ("lvis", "cityscapes_instance"):  # those are needed to read the set
        needed.append(type_of(name).package)
    if kind == "cityscapes_instance":
        needed.append("shapely")
    for package in filter(None, needed):
        try:
            importlib.import_module(_IMPORTED.get(package, package))
        except ImportError as error:
            raise ConfigError(
                f"the dataset {name} needs the package {package} ({reason(error)}); install it "
                f"with: pip install {_INSTALL.get(package, package)}"
            ) from None


def _check_labels(cfg: CfgNode, name: str) -> None:
    """Whether a training set has what the architecture learns from."""
    given, outputs = _labels_of(name), outputs_of(cfg)
    architecture = cfg.MODEL.META_ARCHITECTURE
    if given is None or outputs is None:
        return
    if "sem_seg" in outputs and "sem_seg" not in given:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {architecture} learns from label images, of which "
            f"DATASETS.TRAIN {name} has none: a file in COCO's format lists objects alone. Name a "
            "set with label images, as coco_2017_train_panoptic_separated or ade20k_sem_seg_train "
            "are"
        )
    objects = outputs != ("sem_seg",)
    if objects and "instances" not in given:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {architecture} learns from objects with boxes, of which "
            f"DATASETS.TRAIN {name} has none"
        )
    if cfg.MODEL.MASK_ON and objects and evaluator_type(name) == "pascal_voc":
        raise ConfigError(
            f"MODEL.MASK_ON must be False: DATASETS.TRAIN {name} is of Pascal VOC, whose objects "
            "have no masks"
        )


def _labels_of(name: str) -> tuple[str, ...] | None:
    """What a set has to learn from, "instances" and "sem_seg"; None where that is not known."""
    meta = MetadataCatalog.get(name)
    kind = meta.get("evaluator_type")
    if kind == "coco_panoptic_seg" and not hasattr(meta, "sem_seg_root"):
        return ()  # panoptic images alone, which Panoptic-DeepLab learns from
    return TYPES[kind].labels if kind in TYPES else None


def _check_evaluation(cfg: CfgNode, name: str) -> None:
    """Whether the evaluator of a test set reads what the model gives."""
    given, kind = outputs_of(cfg), evaluator_type(name)
    reads = type_of(name).outputs
    if given is None:
        return
    if not set(reads) & set(given):
        raise ConfigError(
            f"DATASETS.TEST {name} evaluates {_SHOWN[reads[0]]}, a MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE} gives {' and '.join(_SHOWN[g] for g in given)}"
        )
    if kind == "coco_panoptic_seg" and not _labels_of(name):
        raise ConfigError(
            f"DATASETS.TEST {name} has no label images; evaluate a PanopticFPN on the set "
            f"{name}_separated"
        )
    if kind == "cityscapes_instance" and not cfg.MODEL.MASK_ON:
        raise ConfigError(f"DATASETS.TEST {name} evaluates masks, MODEL.MASK_ON is False")


def _check_classes(cfg: CfgNode, name: str) -> None:
    """Whether the model has as many classes as a test set: the evaluators need no fewer, no more.

    Some sets have their classes only after they are read.
    """
    for output, classes in (("instances", "thing_classes"), ("sem_seg", "stuff_classes")):
        known = MetadataCatalog.get(name).get(classes)
        if known is None or output not in (outputs_of(cfg) or ()):
            continue
        if not {output, "panoptic_seg"} & set(type_of(name).outputs):
            continue
        key = class_key(cfg, output)
        if value_of(cfg, key) != len(known):
            raise DataError(
                f"the dataset {name} has {len(known)} categories, {key} is {value_of(cfg, key)}; "
                f"set it to {len(known)}"
            )


def _check_keypoints(cfg: CfgNode, training: bool) -> None:
    if not cfg.MODEL.KEYPOINT_ON:
        return
    count, given = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, cfg.TEST.KEYPOINT_OKS_SIGMAS
    for name in [*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST]:
        names = MetadataCatalog.get(name).get("keypoint_names")
        if names is None or MetadataCatalog.get(name).get("keypoint_flip_map") is None:
            raise ConfigError(
                f"MODEL.KEYPOINT_ON is True, and the dataset {name} names no keypoints "
                "(keypoint_names and keypoint_flip_map in its metadata)"
            )
        if len(names) != count:
            raise ConfigError(
                f"the dataset {name} has {len(names)} keypoints, "
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {count}; set it to {len(names)}"
            )
    if cfg.DATASETS.TEST and (len(given) or _COCO_KEYPOINTS) != count:
        raise ConfigError(
            f"TEST.KEYPOINT_OKS_SIGMAS must be {count} numbers, one for each keypoint, got "
            f"{len(given)}; empty, it stands for the {_COCO_KEYPOINTS} of COCO's persons"
        )


def _check_augmentation(cfg: CfgNode) -> None:
    if not cfg.TEST.AUG.ENABLED:
        return
    architecture = cfg.MODEL.META_ARCHITECTURE
    model = META_ARCH_REGISTRY.get(architecture) if architecture in META_ARCH_REGISTRY else None
    if model is not None and not _refines(model):
        raise ConfigError(
            "TEST.AUG.ENABLED: Detectron2 augments images at test time for a GeneralizedRCNN, not "
            f"for MODEL.META_ARCHITECTURE {architecture}"
        )
    for key in ("KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[key]:
            raise ConfigError(
                f"TEST.AUG.ENABLED: Detectron2 cannot augment images at test time with MODEL.{key}"
            )


def _refines(model: type) -> bool:
    """Whether a model takes boxes that were found before, as the masks of augmented images do."""
    inference = getattr(model, "inference", None)
    return inference is not None and "detected_instances" in inspect.signature(inference).parameters


def _check_expected(cfg: CfgNode) -> None:
    expected = [e for e in cfg.TEST.EXPECTED_RESULTS if isinstance(e, list | tuple) and len(e) == 4]
    if not expected or outputs_of(cfg) is None:
        return
    if len(cfg.DATASETS.TEST) != 1:
        raise ConfigError(
            "TEST.EXPECTED_RESULTS are those of one set, DATASETS.TEST has "
            f"{len(cfg.DATASETS.TEST)}"
        )
    tasks = _tasks_of(cfg, cfg.DATASETS.TEST[0])
    for task, *_ in expected:
        if task not in tasks:
            raise ConfigError(
                f"TEST.EXPECTED_RESULTS names the task {task!r}; those evaluated are "
                f"{', '.join(tasks)}"
            )


def _tasks_of(cfg: CfgNode, name: str) -> list[str]:
    kind = evaluator_type(name)
    if kind in ("cityscapes_sem_seg", "sem_seg"):
        return ["sem_seg"]
    if outputs_of(cfg) == ("proposals",):
        return ["box_proposals"]
    tasks = [] if kind == "cityscapes_instance" else ["bbox"]
    tasks += ["segm"] * (cfg.MODEL.MASK_ON and kind != "pascal_voc")
    tasks += ["keypoints"] * (cfg.MODEL.KEYPOINT_ON and kind == "coco")
    tasks += ["sem_seg", "panoptic_seg"] * (kind == "coco_panoptic_seg")
    return tasks + [f"{task}_TTA" for task in tasks if cfg.TEST.AUG.ENABLED]


def _check_files(name: str, records: Sequence[dict]) -> None:
    if not len(records):
        raise DataError(f"the dataset {name} has no images")
    files = [
        record[key]
        for record in records
        for key in ("file_name", "sem_seg_file_name", "pan_seg_file_name")
        if "://" not in record.get(key, "://")
    ]
    gone = [file for file in files if not os.path.exists(file)]
    if gone:
        raise DataError(
            f"{len(gone)} of {len(files)} files of the dataset {name} are not there: {first(gone)}"
        )
