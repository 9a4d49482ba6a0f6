"""The configuration of a run from its command line, and its check, before any work is done."""

import os
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from evonorm_plugins.errors import DataError
from evonorm_plugins.integrations.detectron2.data import register_coco
from evonorm_plugins.integrations.detectron2.engine import scale_learning_rate
from evonorm_plugins.integrations.detectron2.norms import checked_norm
from evonorm_plugins.registry import get_norm_act, is_norm_act


def setup(args):
    """Build and check the configuration; everything wrong is said before any work is done.

    Args:
        args: options of tools/train_net.py: ``config_file``, ``opts``, ``resume``, ``eval_only``,
            ``allow_empty_categories``, and ``train_json``, ``train_images``, ``val_json``,
            ``val_images`` for data sets that are registered here.

    Returns:
        ``(cfg, notes)``, the frozen config and what to tell the user.

    Raises:
        ValueError (or a subclass), KeyError, FileNotFoundError: bad input.
    """
    if not Path(args.config_file).is_file():
        raise FileNotFoundError(f"there is no config file {args.config_file}")
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    reference_batch = cfg.SOLVER.IMS_PER_BATCH
    cfg.merge_from_list(args.opts)
    notes = [scale_learning_rate(cfg, reference_batch, args.opts[::2])]
    register_datasets(cfg, args)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        if "MODEL.DEVICE" in args.opts[::2]:
            raise ValueError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: torch sees no CUDA device")
        cfg.MODEL.DEVICE = "cpu"
        notes.append("torch sees no CUDA device: running on the CPU.")
    check(cfg, args)
    backbone = cfg.MODEL.RESNETS.NORM
    if not cfg.MODEL.WEIGHTS and not args.resume and "FrozenBN" in backbone:
        notes.append(
            "MODEL.WEIGHTS is empty and MODEL.RESNETS.NORM is FrozenBN: from scratch that is no "
            "norm at all, and training will likely diverge."
        )
    if not cfg.MODEL.WEIGHTS and not args.resume and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        notes.append(
            f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}"
            ": stages that were never trained will not be; set it to 0."
        )
    cfg.freeze()
    return cfg, [note for note in notes if note]


def register_datasets(cfg, args):
    for split, key in (("train", "TRAIN"), ("val", "TEST")):
        json_file, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if json_file:
            name = f"evonorm_{split}"
            report = register_coco(
                name,
                json_file,
                images,
                masks=cfg.MODEL.MASK_ON,
                every_category=split == "train" and not args.allow_empty_categories,
            )
            setattr(cfg.DATASETS, key, (name,))
            part = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
            classes, needed = cfg.MODEL[part].NUM_CLASSES, len(report.instances)
            if needed > classes:
                raise DataError(
                    f"{json_file} has {needed} categories, MODEL.{part}.NUM_CLASSES is {classes}; "
                    f"set it to {needed}"
                )
        elif split == "train" and args.eval_only:
            continue
        else:
            for name in getattr(cfg.DATASETS, key):
                if name not in DatasetCatalog.list():
                    raise DataError(f"DATASETS.{key}: no dataset is registered as {name!r}")
                meta = MetadataCatalog.get(name)
                file = getattr(meta, "json_file", None)
                if file and not os.path.exists(file):
                    raise DataError(
                        f"the dataset {name} has no annotations at {file}; set DETECTRON2_DATASETS "
                        f"or give --{split}-json and --{split}-images"
                    )


def check(cfg, args):
    def norms(node, path=""):
        for key, value in node.items():
            if hasattr(value, "items"):
                yield from norms(value, f"{path}{key}.")
            elif key == "NORM":
                yield f"{path}{key}", value

    for path, norm in norms(cfg.MODEL, "MODEL."):
        try:
            if is_norm_act(checked_norm(norm)):
                get_norm_act(norm, 32, device="meta")  # its options
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no checkpoint {weights}")
    if args.eval_only and not weights and not args.resume:
        raise ValueError("--eval-only needs MODEL.WEIGHTS, or --resume for those in OUTPUT_DIR")
    if not args.resume and not args.eval_only and Path(cfg.OUTPUT_DIR, "last_checkpoint").exists():
        raise ValueError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run already: go on with --resume, "
            "or name another one"
        )
