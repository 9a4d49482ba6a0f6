"""A run of a LazyConfig: everything checked, then training or evaluation, then a report."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    TrainerBase,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from evonorm_plugins.integrations.detectron2.config import find_config_file
from evonorm_plugins.integrations.detectron2.data import (
    NamingMapper,
    check_classes,
    check_names,
    register_coco,
)
from evonorm_plugins.integrations.detectron2.lazy_config import (
    build_optimizer,
    check_lazy_config,
    dataset_names,
    evaluates,
    frozen_stages,
    load_lazy_config,
    norms,
    number_of_classes,
    set_lazy_datasets,
)
from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.integrations.detectron2.losses import LossWatch
from evonorm_plugins.integrations.detectron2.pictures import picture_records
from evonorm_plugins.integrations.detectron2.precision import is_on_cpu, train_in_bfloat16
from evonorm_plugins.integrations.detectron2.processes import (
    check_processes,
    parallel,
    run_processes,
)
from evonorm_plugins.integrations.detectron2.results import log_and_write
from evonorm_plugins.integrations.detectron2.run import check_start, notes_on_fresh_weights
from evonorm_plugins.integrations.detectron2.trainer import StepRecord, log_start
from evonorm_plugins.integrations.detectron2.weights import SafeCheckpointer
from evonorm_plugins.integrations.model_norms import census
from evonorm_plugins.integrations.quiet import silence_libraries
from evonorm_plugins.integrations.results import Results

_ADVICE = "A lower optimizer.lr, a longer warm-up or clipped gradients often help."


def run_lazy(args: argparse.Namespace) -> int:
    """Train or evaluate in the processes asked for; returns the exit status.

    Raises:
        InputError: what is wrong with the input, said before any work is done.
        RunError: training cannot go on.
    """
    silence_libraries()
    cfg, notes = setup_lazy(args)
    # It may hold what cannot be pickled: other processes load it themselves.
    alone = max(args.num_gpus, 1) * args.num_machines == 1
    return run_processes(run_process, args, cfg.train.device, args, notes, cfg if alone else None)


def setup_lazy(args: argparse.Namespace) -> tuple[DictConfig, list[str]]:
    """Load and check the configuration.

    Args:
        args: options of :mod:`evonorm_plugins.integrations.detectron2.train`; the name of a config
            becomes its path.

    Returns:
        ``(cfg, notes)``, the config and what to tell the user.

    Raises:
        InputError: what is wrong with the input.
    """
    args.config_file = str(find_config_file(args.config_file))
    cfg, notes = _prepare(args)
    check_lazy_config(cfg, training=not args.eval_only)
    batch = None if args.eval_only else cfg.dataloader.train.get("total_batch_size")
    check_processes(args, cfg.train.device, batch)
    weights = cfg.train.init_checkpoint
    output = ("train.output_dir", cfg.train.output_dir)
    check_start(args, output, ("train.init_checkpoint", weights))
    if not weights and not args.resume:
        frozen = [key for key, norm in norms(cfg) if norm == "FrozenBN"]
        notes += notes_on_fresh_weights("train.init_checkpoint", frozen, frozen_stages(cfg))
    return cfg, notes


def _prepare(args: argparse.Namespace) -> tuple[DictConfig, list[str]]:
    """The config, and its sets registered in this process."""
    cfg, notes = load_lazy_config(args.config_file, args.opts, trust=args.trust_config)
    for split, part in (("train", "train"), ("val", "test")):
        json_file, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if json_file:
            name = f"evonorm_{split}"
            set_lazy_datasets(cfg, part, name)
            every = split == "train" and not args.allow_empty_categories
            masks = bool(OmegaConf.select(cfg, "dataloader.train.mapper.use_instance_mask"))
            report = register_coco(name, json_file, images, masks=masks, every_category=every)
            if (known := number_of_classes(cfg)) is not None:
                check_classes(json_file, report, *known)
        elif evaluates(cfg) if split == "val" else not args.eval_only:
            check_names(dataset_names(cfg, part), f"dataloader.{part}.dataset.names", split)
    return cfg, notes


def run_process(args: argparse.Namespace, notes: list[str], cfg: DictConfig | None) -> None:
    """What each process of a run does, after :func:`setup_lazy`; ``cfg`` None is loaded again."""
    if cfg is None:
        cfg, _ = _prepare(args)
    default_setup(cfg, args)
    for note in notes:
        logger.warning(note)
    model = _build_model(cfg)
    cost = None
    if args.eval_only:
        checkpointer = SafeCheckpointer(model, cfg.train.output_dir, trust=args.trust_weights)
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
        results = _test(cfg, model)
    else:
        results, cost = _train(cfg, model, args)
    if comm.is_main_process():
        _write_report(cfg, model, results, cost)


def _build_model(cfg: DictConfig) -> nn.Module:
    model = instantiate(cfg.model)
    logger.info("Model:\n%s", model)
    logger.info("Norms of the model by part:\n%s", census(model) or "none")
    return model.to(cfg.train.device)


class _NamingMapper(NamingMapper):
    """The same for a mapper that the config builds."""

    def __init__(self, mapper: Callable[[dict], dict | None]) -> None:
        self.mapper, self.learns_labels = mapper, False


def _loader(node: DictConfig) -> Iterable:
    """A loader whose errors name the image."""
    options = dict(node.items())
    if options.get("mapper") is not None:
        options["mapper"] = _NamingMapper(instantiate(options["mapper"]))
    return instantiate(options)


class _Watched(TrainerBase):
    """A trainer of Detectron2's that says where a loss that is not finite came from."""

    watch: LossWatch

    def run_step(self) -> None:
        with self.watch.step(self.iter, self.optimizer):
            super().run_step()


class _SimpleTrainer(_Watched, SimpleTrainer):
    pass


class _AMPTrainer(_Watched, AMPTrainer):
    pass


def _train(
    cfg: DictConfig, model: nn.Module, args: argparse.Namespace
) -> tuple[Results, dict[str, Any]]:
    """Train; returns the results of the last evaluation and what training cost."""
    amp = cfg.train.amp.enabled
    if amp and is_on_cpu(model):
        train_in_bfloat16(model)
        amp = False
    optimizer, loader = build_optimizer(cfg, model), _loader(cfg.dataloader.train)
    model = parallel(model, **cfg.train.ddp)
    trainer = (_AMPTrainer if amp else _SimpleTrainer)(model, loader, optimizer)
    trainer.watch = LossWatch(model, _ADVICE)
    folder, is_main = cfg.train.output_dir, comm.is_main_process()
    trust = {"trust": args.trust_weights, "drop_norms": args.drop_norms}
    checkpointer = SafeCheckpointer(model, folder, **trust, trainer=trainer)
    steps = StepRecord(os.path.join(folder, "steps.csv") if is_main else os.devnull)
    results: Results = {}

    def test() -> Results:
        results.clear()
        results.update(_test(cfg, model))
        return results

    of_all = [
        steps,  # first, so that evaluation and checkpoints between two steps do not count
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
    ]
    evaluation = [hooks.EvalHook(cfg.train.eval_period, test)]
    writers = default_writers(folder, cfg.train.max_iter) if is_main else []
    of_main = (
        [hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)],
        [hooks.PeriodicWriter(writers, period=cfg.train.log_period)],
    )
    before, after = of_main if is_main else ([], [])
    trainer.register_hooks([*of_all, *before, *evaluation, *after])
    weights = cfg.train.init_checkpoint
    checkpointer.resume_or_load(weights, resume=args.resume)
    resumes = args.resume and checkpointer.has_checkpoint()
    start = trainer.iter + 1 if resumes else 0
    log_start(checkpointer.get_checkpoint_file() if resumes else "", weights, start)
    trainer.train(start, cfg.train.max_iter)
    return results, steps.summary()


def _test(cfg: DictConfig, model: nn.Module) -> Results:
    if not evaluates(cfg):
        return {}
    evaluator = instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, _loader(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    # An evaluator of the config's own may give a number in place of a task's numbers.
    return {task: v if isinstance(v, Mapping) else {task: v} for task, v in results.items()}


def _write_report(cfg: DictConfig, model: nn.Module, results: Results, cost: dict | None) -> None:
    names = dataset_names(cfg, "test") if evaluates(cfg) else []
    about = {"dataset": names, "weights": cfg.train.init_checkpoint, "command": sys.argv}

    def draw(path: Path) -> None:
        records = get_detection_dataset_dicts(names[0], filter_empty=False)
        mapper = _NamingMapper(instantiate(cfg.dataloader.test.mapper))
        picture_records(model, records, mapper, names[0], path, images=6)

    draws = names and cfg.dataloader.test.get("mapper") is not None
    folder = Path(cfg.train.output_dir)
    log_and_write(folder, model, results, cost, about, draw if draws else None)
