"""A run of a Detectron2 config: everything checked, then training or evaluation, then a report."""

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from evonorm_plugins import errors
from evonorm_plugins.configs import find_config
from evonorm_plugins.errors import ConfigError, DataError, InputError, RunError, first
from evonorm_plugins.files import check_folder
from evonorm_plugins.integrations.detectron2.config import check_config, load_config
from evonorm_plugins.integrations.detectron2.data import SPLITS, check_registered, set_datasets
from evonorm_plugins.integrations.detectron2.logs import logger
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
    _check_processes(args)
    args.config_file = str(find_config(args.config_file, "detectron2"))  # Detectron2 opens it, too
    cfg, notes = load_config(args.config_file, args.opts, trust=args.trust_config)
    register_datasets(args, cfg)
    check_tasks(cfg, training=not args.eval_only, machines=args.num_machines)
    check_config(cfg, training=not args.eval_only)
    check_proposals(cfg, training=not args.eval_only, trust=args.trust_weights)
    _check_folder(cfg, args)
    weights = cfg.MODEL.WEIGHTS
    if args.eval_only and not weights and not args.resume:
        raise ConfigError("--eval-only needs MODEL.WEIGHTS, or --resume for those in OUTPUT_DIR")
    if args.drop_norms and (args.eval_only or not weights):
        raise ConfigError("--drop-norms is for training that starts from MODEL.WEIGHTS")
    resumes = args.resume and Path(cfg.OUTPUT_DIR, "last_checkpoint").exists()
    if resumes:
        check_last_checkpoint(cfg.OUTPUT_DIR, trust=args.trust_weights)
    elif weights:
        check_weights(weights, trust=args.trust_weights)
    if not weights and not args.resume:
        notes += _notes_on_fresh_weights(cfg)
    cfg.freeze()
    return cfg, notes


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


def _check_processes(args: argparse.Namespace) -> None:
    gpus, machines, seen = args.num_gpus, args.num_machines, torch.cuda.device_count()
    if gpus < 0 or machines < 1 or not 0 <= args.machine_rank < machines:
        raise ConfigError(
            f"--num-gpus {gpus} --num-machines {machines} --machine-rank {args.machine_rank}: "
            "ranks of machines count from 0"
        )
    if gpus > max(seen, 1):
        raise ConfigError(f"--num-gpus {gpus}: torch sees {seen} CUDA devices on this machine")


def _check_folder(cfg: CfgNode, args: argparse.Namespace) -> None:
    check_folder(cfg.OUTPUT_DIR, name="OUTPUT_DIR")
    if not args.resume and not args.eval_only and Path(cfg.OUTPUT_DIR, "last_checkpoint").exists():
        raise ConfigError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run already: go on with --resume, "
            "or name another one"
        )


def _notes_on_fresh_weights(cfg: CfgNode) -> list[str]:
    notes = []
    if "FrozenBN" in cfg.MODEL.RESNETS.NORM:
        notes.append(
            "MODEL.WEIGHTS is empty and MODEL.RESNETS.NORM is FrozenBN: from scratch that is no "
            "norm at all, and training will likely diverge."
        )
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        notes.append(
            f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}"
            ": stages that were never trained will not be; set it to 0."
        )
    return notes


def run(args: argparse.Namespace) -> int:
    """Train or evaluate on the GPUs asked for; returns the exit status.

    Raises:
        InputError: see :func:`setup`.
        RunError: training cannot go on.
    """
    silence_libraries()
    # Here: a mistake is told once, not by every process.
    cfg, notes = setup(args)
    try:
        with original_errors():
            launch(
                run_process,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args, cfg, notes),
            )
    except ProcessRaisedException as error:
        print(error, file=sys.stderr)
        return 1
    except ProcessExitedException as error:
        return error.exit_code or 1
    return 0


def run_process(args: argparse.Namespace, cfg: CfgNode, notes: list[str]) -> None:
    """What each process of a run does, with what :func:`setup` returned."""
    if comm.get_world_size() > 1:
        silence_libraries()
        named = cfg.clone()
        named.defrost()
        register_datasets(args, named)  # in each process
    default_setup(cfg, args)
    for note in notes:
        logger.warning(note)
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


@contextlib.contextmanager
def original_errors() -> Iterator[None]:
    """Errors of this package that come from another process, as if they came from this one.

    There, they arrive as the text of a traceback.
    """
    try:
        yield
    except (InputError, RunError, ProcessRaisedException) as error:
        raised = re.findall(r"^evonorm_plugins\.errors\.(\w+): (.*)$", str(error), re.MULTILINE)
        if not raised:
            raise
        name, message = raised[-1]
        kind = InputError if issubclass(getattr(errors, name), InputError) else RunError
        raise kind(message) from None
