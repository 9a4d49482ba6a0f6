"""A run: training from its first iteration or where it was left, evaluation, what it leaves."""

import contextlib
import datetime
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from evonorm_plugins.errors import ConfigError, NonFiniteError
from evonorm_plugins.files import check_folder
from evonorm_plugins.integrations.model_norms import census
from evonorm_plugins.integrations.results import Results, report_lines, write_results
from evonorm_plugins.integrations.step_record import StepRecord
from evonorm_plugins.integrations.torchvision import checkpoint
from evonorm_plugins.integrations.torchvision.config import Options
from evonorm_plugins.integrations.torchvision.data import CocoSet, TrainingImages, batches
from evonorm_plugins.integrations.torchvision.evaluate import (
    detect,
    evaluate,
    picture,
    save_detections,
)
from evonorm_plugins.integrations.torchvision.models import build_detector
from evonorm_plugins.integrations.torchvision.trainer import Trainer
from evonorm_plugins.metrics.ap import pick_evaluator
from evonorm_plugins.training.checkpoint import loading
from evonorm_plugins.training.memory import check_workers
from evonorm_plugins.training.ranks import pick_device

logger = logging.getLogger("evonorm_plugins.torchvision")


class Run:
    """Training and evaluation of one detector.

    ``output_dir`` gets ``checkpoint.pt``, ``steps.csv``, ``detections.json``, ``results.json``,
    ``predictions.png`` and ``log.txt``.

    Args:
        options: :class:`~evonorm_plugins.integrations.torchvision.config.Options`.
        resume: go on with what is in ``output_dir``, if anything is.
        evaluate_only: the training set is not needed.

    Raises:
        ConfigError, DataError, InputError, ConvertError, CheckpointError: what is wrong, before
            any work is done.
    """

    def __init__(
        self, options: Options, *, resume: bool = False, evaluate_only: bool = False
    ) -> None:
        options.check()
        check_workers(options.workers)
        self.options, self.evaluate_only = options, evaluate_only
        self.folder = Path(options.output_dir)
        self.checkpoint = self.folder / "checkpoint.pt"
        state, path = self._state(resume)
        device = pick_device(options.device)
        self._open_sets()
        self._build()
        if state and path:
            checkpoint.load_into(self.model, state, path, self.categories)
        self.trainer = Trainer(self.model.to(device), options)
        if state and path == self.checkpoint:
            loading(path, self.trainer.load_state_dict, state)

    def _open_sets(self) -> None:
        options = self.options
        self.train_set = None if self.evaluate_only else self._open("train")
        wanted = options.val_json or options.val_images or self.evaluate_only
        self.val_set = self._open("val") if wanted else None
        if self.val_set:
            pick_evaluator()  # where there is none, that is to be known before training
        opened = [images for images in (self.train_set, self.val_set) if images]
        self.categories = opened[0].categories
        if self.val_set and self.val_set.categories != self.categories:
            raise ConfigError(
                f"{options.val_json} has the categories {', '.join(self.val_set.categories)}, "
                f"{options.train_json} has {', '.join(self.categories)}; they must be the same"
            )

    def _build(self) -> None:
        options = self.options
        torch.manual_seed(options.seed)
        self.model, self.conversion = build_detector(
            options.model,
            len(self.categories),
            options.norm,
            min_size=options.min_size,
            max_size=options.max_size,
            model_options=options.model_options,
        )

    def _state(self, resume: bool) -> tuple[dict | None, Path | None]:
        """The checkpoint to begin with, if any, and its path."""
        check_folder(self.options.output_dir)
        if resume or not self.evaluate_only:
            state = checkpoint.FORMAT.resumed(self.checkpoint, resume=resume)
            if state:
                return state, self.checkpoint
        if self.options.weights:
            return checkpoint.FORMAT.load(self.options.weights), Path(self.options.weights)
        if self.evaluate_only:
            raise ConfigError("evaluation needs weights")
        return None, None

    def _open(self, split: str) -> CocoSet:
        json_file, images = (getattr(self.options, f"{split}_{k}") for k in ("json", "images"))
        if not json_file or not images:
            raise ConfigError(f"{split}_json and {split}_images are both needed")
        every = split == "train" and not self.options.allow_empty_categories
        masks = self.options.model.startswith("maskrcnn_")
        return CocoSet(json_file, images, masks=masks, every_category=every)

    def train(self) -> Results:
        """Take the iterations that are left, then evaluate.

        Returns:
            ``{"bbox": {...}, "segm": {...}}``, AP in percent; nothing without a set to evaluate.

        Raises:
            NonFiniteError, NoSpaceError: training cannot go on; the last checkpoint is from
                before.
        """
        options, trainer = self.options, self.trainer
        with self._log_file():
            assert self.train_set  # there unless the run was made with evaluate_only
            self._describe(self.train_set)
            images = TrainingImages(self.train_set, options.seed, options.flip)
            positions = range(trainer.iteration * options.batch, options.iterations * options.batch)
            self.steps = StepRecord(self.folder / "steps.csv")
            self.steps.open()
            self.model.train()
            try:
                for entries in batches(images, positions, options.batch, options.workers):
                    self.steps.start()
                    trainer.step(entries)
                    self.steps.stop(trainer.iteration - 1, trainer.loss)
                    self._after_step()
            except NonFiniteError as error:
                saved = f"The last checkpoint, {self.checkpoint}, is from before"
                saved = saved if self.checkpoint.exists() else "There is no checkpoint yet"
                raise NonFiniteError(f"{error}. {saved}.") from None
            finally:
                self.steps.close()
            return self._finish(self.steps.summary())

    def evaluate(self) -> Results:
        """Evaluate the weights as they are; returns what :meth:`train` does."""
        with self._log_file():
            return self._finish(None)

    @contextlib.contextmanager
    def _log_file(self) -> Iterator[None]:
        """What is logged also goes to the end of a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()

    def _describe(self, train_set: CocoSet) -> None:
        options = self.options
        logger.info("Norms of the model by part:\n%s", census(self.model) or "none")
        if self.conversion:
            counts = self.conversion.counts()
            logger.info(
                "%s with %s in place of %d norms and their activations, the affine transform in "
                "place of %d norms; %s parameters",
                options.model, options.norm, counts["replaced"], counts["affine"],
                f"{sum(p.numel() for p in self.model.parameters()):,}",
            )  # fmt: skip
        logger.info(
            "%d images of %d categories, %d an iteration at rate %g, on %s; starting at "
            "iteration %d",
            len(train_set.images), len(self.categories), options.batch, options.base_rate(),
            self.trainer.device, self.trainer.iteration,
        )  # fmt: skip

    def _after_step(self) -> None:
        options, k = self.options, self.trainer.iteration
        last = k == options.iterations
        if k % options.log_every == 0 or last:
            recent = self.steps.seconds[-100:]
            left = int((options.iterations - k) * sum(recent) / len(recent))
            logger.info(
                "  iteration %9s   loss %-7.4g %s left",
                f"{k}/{options.iterations}", self.trainer.loss, datetime.timedelta(seconds=left),
            )  # fmt: skip
        if last or (options.checkpoint_every and k % options.checkpoint_every == 0):
            self._save()
        if self.val_set and options.eval_every and k % options.eval_every == 0 and not last:
            results = evaluate(self.val_set, self._detect(self.val_set))
            logger.info(report_lines(results, None, options.val_json)[0])

    def _save(self) -> None:
        state = self.trainer.state_dict()
        checkpoint.save(self.checkpoint, self.model, self.options, self.categories, **state)

    def _detect(self, images: CocoSet) -> list[dict]:
        options = self.options
        return detect(self.model, images, batch=options.batch, workers=options.workers)

    def _finish(self, cost: dict | None) -> Results:
        results: Results = {}
        written: list[Path] = []
        if self.val_set:
            detections = self._detect(self.val_set)
            written = [self.folder / "detections.json", self.folder / "predictions.png"]
            save_detections(detections, written[0])
            results = evaluate(self.val_set, detections)
            picture(self.val_set, detections, written[1])
        record = write_results(
            self.folder,
            self.model,
            results,
            cost,
            dataset=self.options.val_json,
            weights=self.options.weights,
            iterations=self.trainer.iteration,
            options=self.options.to_dict(),
            command=sys.argv,
        )
        for line in report_lines(results, cost, self.options.val_json):
            logger.info(line)
        *others, last = map(str, [*written, record])
        logger.info("Wrote %s%s.", ", ".join(others) + " and " * bool(others), last)
        return results
