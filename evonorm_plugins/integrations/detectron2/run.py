"""A run of a Detectron2 config: everything checked, then training or evaluation, then a report."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm

from evonorm_plugins.errors import ConfigError, DataError, first
from evonorm_plugins.files import check_folder
from evonorm_plugins.integrations.detectron2.config import (
    as_config_errors,
    check_config,
    find_config_file,
    load_config,
)
from evonorm_plugins.integrations.detectron2.data import SPLITS, check_registered, set_datasets
from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.integrations.detectron2.processes import check_processes, run_processes
from evonorm_plugins.integrations.detectron2.proposals import check_proposals
from evonorm_plugins.integrations.detectron2.results import check_expected, write_report
from evonorm_plugins.integrations.detectron2.tasks import check_tasks
from evonorm_plugins.integrations.detectron2.trainer import Trainer
from evonorm_plugins.integrations.detectron2.weights import (
    SafeCheckpointer,
    check_last_checkpoint,
    check_weights,
)
from evonorm_plugins.integrations.quiet import silence_libraries
from evonorm_plugins.training.memory import keep_freed_memory


def setup(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """Build and check the configuration; everything wrong is said before any work is done.

    Args:
        args: options of :mod:`evonorm_plugins.integrations.detectron2.train`; the name of a config
            becomes its path.

    Returns:
        ``(cfg, notes)``, the frozen config and what to tell the user.

    Raises:
        InputError: what is wrong with the input.
    """
    args.config_file = str(find_config_file(args.config_file))  # Detectron2 opens it, too
    cfg, notes = load_config(args.config_file, args.opts, trust=args.trust_config)
    register_datasets(args, cfg)
    check_tasks(cfg, training=not args.eval_only, machines=args.num_machines)
    check_config(cfg, training=not args.eval_only)
    check_processes(args, cfg.MODEL.DEVICE, None if args.eval_only else _batch(cfg, args))
    check_proposals(cfg, training=not args.eval_only, trust=args.trust_weights)
    weights = cfg.MODEL.WEIGHTS
    check_start(args, ("OUTPUT_DIR", cfg.OUTPUT_DIR), ("MODEL.WEIGHTS", weights))
    if not weights and not args.resume:
        frozen = ["MODEL.RESNETS.NORM"] if "FrozenBN" in cfg.MODEL.RESNETS.NORM else []
        stages = cfg.MODEL.BACKBONE.FREEZE_AT
        stages = [("MODEL.BACKBONE.FREEZE_AT", stages)] if stages > 0 else []
        notes += notes_on_fresh_weights("MODEL.WEIGHTS", frozen, stages)
    cfg.freeze()
    return cfg, notes


def _batch(cfg: CfgNode, args: argparse.Namespace) -> int:
    """Images a step, which may be scaled with the number of processes."""
    size = max(args.num_gpus, 1) * args.num_machines
    with as_config_errors("SOLVER.REFERENCE_WORLD_SIZE"):
        return Trainer.auto_scale_workers(cfg, size).SOLVER.IMS_PER_BATCH


def register_datasets(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Register the sets of a command line, in this process, and name them in ``cfg``.

    Raises:
        DataError: a set cannot be used, or is not there.
    """
    categories = {}
    for split in SPLITS:
        json_file, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if json_file:
            every = split == "train" and not args.allow_empty_categories
            options = {"every_category": every, "keypoints": cfg.MODEL.KEYPOINT_ON}
            report = set_datasets(cfg, split, json_file, images, **options)
            categories[json_file] = list(report.instances)
        elif split == "val" or not args.eval_only:
            check_registered(cfg, split)
    if len({tuple(names) for names in categories.values()}) > 1:
        (one, names), (other, others) = categories.items()
        raise DataError(
            f"the categories of {one} ({first(names)}) and {other} ({first(others)}) must be the "
            "same, in the order of their ids"
        )


def check_start(
    args: argparse.Namespace, output: tuple[str, str], weights: tuple[str, str]
) -> None:
    """Find out whether a run can write to its folder, and read what it starts from.

    Args:
        output, weights: the key of the folder and its value, and those of the initial weights.

    Raises:
        InputError: it cannot, or would write over another run.
    """
    folder_key, folder = output
    weights_key, path = weights
    check_folder(folder, name=folder_key)
    is_run = Path(folder, "last_checkpoint").exists()
    if is_run and not (args.resume or args.eval_only):
        raise ConfigError(
            f"{folder_key} {folder} holds a run already: go on with --resume, or name another one"
        )
    if args.eval_only and not path and not args.resume:
        raise ConfigError(f"--eval-only needs {weights_key}, or --resume for those in {folder_key}")
    if args.drop_norms and (args.eval_only or not path):
        raise ConfigError(f"--drop-norms is for training that starts from {weights_key}")
    if args.resume and is_run:
        check_last_checkpoint(folder, trust=args.trust_weights)
    elif path:
        check_weights(path, trust=args.trust_weights)


def notes_on_fresh_weights(
    weights: str, frozen_norms: Sequence[str], frozen_stages: Iterable[tuple[str, int]]
) -> list[str]:
    """What to tell the user of a run that starts without weights.

    Args:
        weights: the key of the weights.
        frozen_norms: keys of norms that are FrozenBN; the first is named.
        frozen_stages: ``(key, value)`` of what freezes stages.
    """
    return [
        *(
            f"{weights} is empty and {key} is FrozenBN: from scratch that is no norm at all, and "
            "training will likely diverge."
            for key in frozen_norms[:1]
        ),
        *(
            f"{weights} is empty and {key} is {value}: stages that were never trained will not be; "
            "set it to 0."
            for key, value in frozen_stages
        ),
    ]


def run(args: argparse.Namespace) -> int:
    """Train or evaluate on the GPUs asked for; returns the exit status.

    Raises:
        InputError: see :func:`setup`.
        RunError: training cannot go on.
    """
    silence_libraries()
    # Here: a mistake is told once, not by every process.
    cfg, notes = setup(args)
    return run_processes(run_process, args, cfg.MODEL.DEVICE, args, cfg, notes)


def run_process(args: argparse.Namespace, cfg: CfgNode, notes: list[str]) -> None:
    """What each process of a run does, with what :func:`setup` returned."""
    if comm.get_world_size() > 1:
        named = cfg.clone()
        named.defrost()
        register_datasets(args, named)  # in each process
    default_setup(cfg, args)
    for note in notes:
        logger.warning(note)
    if torch.device(cfg.MODEL.DEVICE).type == "cpu":
        keep_freed_memory()  # this process is the run's own
    cost = None
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trust=args.trust_weights)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
    else:
        trainer = Trainer(cfg, trust_weights=args.trust_weights, drop_norms=args.drop_norms)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        model = trainer.model
        results = getattr(trainer, "_last_eval_results", {})
        cost = trainer.steps.summary()
    if cfg.TEST.AUG.ENABLED:
        results = {**results, **Trainer.test_augmented(cfg, model)}
    if comm.is_main_process():
        write_report(cfg, model, results, cost, command=sys.argv)
        check_expected(cfg, results)
