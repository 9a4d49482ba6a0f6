"""Detectron2's trainer with what training from scratch with a new norm needs to be told early."""

import contextlib
import logging
import os
import weakref
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import DataLoader

from evonorm_plugins.errors import InterruptedRunError
from evonorm_plugins.integrations import step_record
from evonorm_plugins.integrations.detectron2.continuation import seed_step, skip_batches
from evonorm_plugins.integrations.detectron2.data import NamingMapper
from evonorm_plugins.integrations.detectron2.evaluators import build_evaluator
from evonorm_plugins.integrations.detectron2.logs import logger
from evonorm_plugins.integrations.detectron2.losses import LossWatch
from evonorm_plugins.integrations.detectron2.precision import is_on_cpu, train_in_bfloat16
from evonorm_plugins.integrations.detectron2.processes import parallel
from evonorm_plugins.integrations.detectron2.solver import align_momentum, fused
from evonorm_plugins.integrations.detectron2.tasks import reading
from evonorm_plugins.integrations.detectron2.weights import SafeCheckpointer
from evonorm_plugins.integrations.model_norms import census
from evonorm_plugins.training.ranks import Stop
from evonorm_plugins.training.seeds import SEEDS, mixed_seed

_ADVICE = (
    "A lower SOLVER.BASE_LR, a longer warm-up or SOLVER.CLIP_GRADIENTS.ENABLED True often helps."
)


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` with the evaluators of every task and a diagnosis of non-finite losses.

    Images that cannot be read are named; weights are read without running code that they may hold.
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE: "full_model"`` clips the norm of all gradients together to
    ``CLIP_VALUE``; Detectron2's own types clip each parameter by itself.

    Args:
        cfg: the configuration.
        trust_weights: read weights with Python's pickle.
        drop_norms: load ``MODEL.WEIGHTS`` that were trained with another norm without their norms.
    """

    def __init__(
        self, cfg: CfgNode, *, trust_weights: bool = False, drop_norms: bool = False
    ) -> None:
        # As DefaultTrainer does it, which knows no DistributedDataParallel on CPUs.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        amp = cfg.SOLVER.AMP.ENABLED
        if amp and is_on_cpu(model):
            train_in_bfloat16(model)
            amp = False
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        model = parallel(model, broadcast_buffers=False)
        self.watch = LossWatch(model, _ADVICE)
        kind = AMPTrainer if amp else SimpleTrainer
        self._trainer = kind(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            trust=trust_weights,
            drop_norms=drop_norms,
            trainer=weakref.proxy(self),
        )
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        logger.info("Norms of the model by part:\n%s", census(model) or "none")
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        # Of its own: that of a step begins with the step, also where a loader is made in it.
        seed = mixed_seed(cfg.SEED, comm.get_rank()) % SEEDS if cfg.SEED >= 0 else None
        with reading(*cfg.DATASETS.TRAIN):
            return build_detection_train_loader(cfg, mapper=NamingMapper(cfg, True), seed=seed)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        with reading(dataset_name):
            return build_detection_test_loader(cfg, dataset_name, mapper=NamingMapper(cfg, False))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        with reading(dataset_name):
            return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test_augmented(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """What ``test`` gives with augmented images, with ``_TTA`` behind the names of tasks."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{task}_TTA": values for task, values in results.items()}

    def train(self) -> None:
        # Not Detectron2's own, which compares with TEST.EXPECTED_RESULTS and then exits, before
        # anything could be written about the run.
        alone = comm.get_world_size() == 1  # of several processes, the one that started them stops
        with Stop() if alone else contextlib.nullcontext() as self.stop:
            try:
                super(DefaultTrainer, self).train(self.start_iter, self.max_iter)
            except KeyboardInterrupt:
                if not (self.stop and self.stop.name):
                    raise
                raise InterruptedRunError(
                    f"stopped by {self.stop.name} after iteration {self.iter}; --resume goes on"
                ) from None

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        clip = cfg.SOLVER.CLIP_GRADIENTS
        if not (clip.ENABLED and clip.CLIP_TYPE == "full_model"):
            return fused(super().build_optimizer(cfg, model))
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = fused(super().build_optimizer(cfg, model))
        params = [p for group in optimizer.param_groups for p in group["params"]]

        def clip_gradients(*_: object) -> None:
            torch.nn.utils.clip_grad_norm_(params, clip.CLIP_VALUE, clip.NORM_TYPE)

        optimizer.register_step_pre_hook(clip_gradients)
        return optimizer

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume=resume)
        resumes = resume and self.checkpointer.has_checkpoint()
        path = self.checkpointer.get_checkpoint_file() if resumes else ""
        log_start(path, self.cfg.MODEL.WEIGHTS, self.start_iter)
        if resumes:
            align_momentum(self.optimizer)
            if self.cfg.SEED >= 0:
                skip_batches(self._trainer.data_loader, self.start_iter)

    def build_hooks(self) -> list[HookBase]:
        path = os.path.join(self.cfg.OUTPUT_DIR, "steps.csv")
        self.steps = StepRecord(path if comm.is_main_process() else os.devnull)
        # First, so that evaluation and checkpoints between two steps do not count.
        return [self.steps, *super().build_hooks(), StopHook()]

    def run_step(self) -> None:
        if self.cfg.SEED >= 0:
            seed_step(self.cfg.SEED, self.iter, comm.get_rank())
        with self.watch.step(self.iter, self.optimizer):
            super().run_step()


class StopHook(HookBase):
    """Saves and ends the run at the end of a step in which SIGTERM or Ctrl-C came."""

    def after_step(self) -> None:
        iteration, stop = self.trainer.iter, self.trainer.stop
        if not (stop and stop.name) or iteration + 1 >= self.trainer.max_iter:
            return
        self.trainer.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        raise KeyboardInterrupt  # any other would be logged as a failure


def log_start(resumed: str, weights: str, iteration: int) -> None:
    """Log where training starts: from a checkpoint of its own, from weights, or from neither."""
    if resumed:
        logger.info("Resuming %s at iteration %d.", resumed, iteration)
    elif weights:
        logger.info("Starting at iteration 0 with the weights of %s.", weights)
    else:
        logger.info("Starting at iteration 0 with fresh weights.")


class StepRecord(step_record.StepRecord, HookBase):
    """The record of every step, in ``steps.csv``, as a hook of the trainer.

    Detectron2's own ``metrics.json`` has a line for 20 steps, and medians.
    """

    def before_train(self) -> None:
        self.open()

    def before_step(self) -> None:
        self.start()

    def after_step(self) -> None:
        # Ranks other than the first keep no history of losses.
        loss = self.trainer.storage.history("total_loss").latest() if comm.is_main_process() else 0
        self.stop(self.trainer.iter, loss)

    def after_train(self) -> None:
        self.close()
