"""A run: training from its first iteration or where it was left, evaluation, what it leaves."""

import contextlib
import datetime
import logging
import math
import sys
from pathlib import Path

import torch

from evonorm_plugins.errors import ConfigError, NonFiniteError
from evonorm_plugins.integrations.model_norms import census, is_norm
from evonorm_plugins.integrations.non_finite import first_non_finite
from evonorm_plugins.integrations.results import report_lines, write_results
from evonorm_plugins.integrations.step_record import StepRecord
from evonorm_plugins.integrations.torchvision import checkpoint
from evonorm_plugins.integrations.torchvision.data import CocoSet, TrainingImages, batches
from evonorm_plugins.integrations.torchvision.evaluate import (
    detect,
    evaluate,
    picture,
    save_detections,
)
from evonorm_plugins.integrations.torchvision.models import build_detector
from evonorm_plugins.metrics.ap import pick_evaluator

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

    def __init__(self, options, *, resume=False, evaluate_only=False):
        options.check()
        self.options, self.evaluate_only = options, evaluate_only
        self.folder = Path(options.output_dir)
        self.checkpoint = self.folder / "checkpoint.pt"
        state, path = self._state(resume)
        self.device = _device(options.device)
        self._open_sets()
        self.iteration = 0
        self._build()
        if state:
            checkpoint.load_into(self.model, state, path, self.categories)
        self.model.to(self.device)
        self.optimizer = _optimizer(self.model, options)
        if state and path == self.checkpoint:
            self.iteration = state["iteration"]
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
            if self.device.type == "cuda" and state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output_dir {self.folder}: {error.strerror}") from None

    def _open_sets(self):
        options = self.options
        self.train_set = None if self.evaluate_only else self._open("train")
        wanted = options.val_json or options.val_images or self.evaluate_only
        self.val_set = self._open("val") if wanted else None
        if self.val_set:
            pick_evaluator()  # where there is none, that is to be known before training
        self.categories = (self.train_set or self.val_set).categories
        if self.val_set and self.val_set.categories != self.categories:
            raise ConfigError(
                f"{options.val_json} has the categories {', '.join(self.val_set.categories)}, "
                f"{options.train_json} has {', '.join(self.categories)}; they must be the same"
            )

    def _build(self):
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

    def _state(self, resume):
        """The checkpoint to begin with, if any, and its path."""
        if self.checkpoint.exists() and resume:
            return checkpoint.FORMAT.load(self.checkpoint), self.checkpoint
        if self.checkpoint.exists() and not self.evaluate_only:
            raise ConfigError(
                f"output_dir {self.folder} holds a run already: go on with --resume, or name "
                "another one"
            )
        if self.options.weights:
            return checkpoint.FORMAT.load(self.options.weights), Path(self.options.weights)
        if self.evaluate_only:
            raise ConfigError("evaluation needs weights")
        return None, None

    def _open(self, split):
        json_file, images = (getattr(self.options, f"{split}_{k}") for k in ("json", "images"))
        if not json_file or not images:
            raise ConfigError(f"{split}_json and {split}_images are both needed")
        every = split == "train" and not self.options.allow_empty_categories
        masks = self.options.model.startswith("maskrcnn_")
        return CocoSet(json_file, images, masks=masks, every_category=every)

    def train(self):
        """Take the iterations that are left, then evaluate.

        Returns:
            ``{"bbox": {...}, "segm": {...}}``, AP in percent; nothing without a set to evaluate.

        Raises:
            NonFiniteError, NoSpaceError: training cannot go on; the last checkpoint is from
                before.
        """
        options = self.options
        with _log_file(self.folder / "log.txt"):
            self._describe()
            images = TrainingImages(self.train_set, options.seed, options.flip)
            positions = range(self.iteration * options.batch, options.iterations * options.batch)
            self.steps = StepRecord(self.folder / "steps.csv")
            self.steps.open()
            self.model.train()
            try:
                for entries in batches(images, positions, options.batch, options.workers):
                    self._step(entries)
                    self._after_step()
            finally:
                self.steps.close()
            return self._finish(self.steps.summary())

    def evaluate(self):
        """Evaluate the weights as they are; returns what :meth:`train` does."""
        with _log_file(self.folder / "log.txt"):
            return self._finish(None)

    def _describe(self):
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
            len(self.train_set.images), len(self.categories), options.batch, options.base_rate(),
            self.device, self.iteration,
        )  # fmt: skip

    def _step(self, entries):
        self.steps.start()
        images = [image.to(self.device) for image, _, _ in entries]
        targets = [{k: v.to(self.device) for k, v in t.items()} for _, t, _ in entries]
        rate = self.options.rate(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.model(images, targets)
        total = sum(losses.values())
        values = {name: loss.item() for name, loss in losses.items()}
        self.loss = sum(values.values())
        if not math.isfinite(self.loss):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            raise NonFiniteError(self._diagnosis("loss", shown, images, targets, entries))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if self.options.clip_gradients:
            norm = torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.options.clip_gradients
            )
            if not torch.isfinite(norm):
                shown = f"norm {norm.item()} at loss {self.loss:.4g}"
                raise NonFiniteError(self._diagnosis("gradient", shown, images, targets, entries))
        self.optimizer.step()
        self.steps.stop(self.iteration, self.loss)
        self.iteration += 1

    def _diagnosis(self, what, values, images, targets, entries):
        saved = f"The last checkpoint, {self.checkpoint}, is from before"
        return (
            f"the {what} is not finite at iteration {self.iteration}: {values}. "
            f"{first_non_finite(self.model, images, targets)}. Learning rate "
            f"{self.optimizer.param_groups[0]['lr']:g}, image ids {[k for _, _, k in entries]}. "
            "A lower rate, a longer warm-up or a lower limit of gradients often helps. "
            f"{saved if self.checkpoint.exists() else 'There is no checkpoint yet'}."
        )

    def _after_step(self):
        options, k = self.options, self.iteration
        last = k == options.iterations
        if k % options.log_every == 0 or last:
            recent = self.steps.seconds[-100:]
            left = (options.iterations - k) * sum(recent) / len(recent)
            logger.info(
                "  iteration %9s   loss %-7.4g %s left",
                f"{k}/{options.iterations}", self.loss, datetime.timedelta(seconds=int(left)),
            )  # fmt: skip
        if last or (options.checkpoint_every and k % options.checkpoint_every == 0):
            self._save()
        if self.val_set and options.eval_every and k % options.eval_every == 0 and not last:
            results, _ = self._evaluate()
            logger.info(report_lines(results, None, options.val_json)[0])

    def _save(self):
        checkpoint.save(
            self.checkpoint,
            self.model,
            self.options,
            self.categories,
            iteration=self.iteration,
            optimizer=self.optimizer.state_dict(),
            rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        )

    def _evaluate(self):
        detections = detect(
            self.model, self.val_set, batch=self.options.batch, workers=self.options.workers
        )
        return evaluate(self.val_set, detections), detections

    def _finish(self, cost):
        results, written = {}, []
        if self.val_set:
            results, detections = self._evaluate()
            written = [self.folder / "detections.json", self.folder / "predictions.png"]
            save_detections(detections, written[0])
            picture(self.val_set, detections, written[1])
        record = write_results(
            self.folder,
            self.model,
            results,
            cost,
            dataset=self.options.val_json,
            weights=self.options.weights,
            iterations=self.iteration,
            options=self.options.to_dict(),
            command=sys.argv,
        )
        for line in report_lines(results, cost, self.options.val_json):
            logger.info(line)
        *others, last = map(str, [*written, record])
        logger.info("Wrote %s%s.", ", ".join(others) + " and " * bool(others), last)
        return results


def _device(name):
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is none; cuda, cuda:1 or cpu are") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def _optimizer(model, options):
    of_norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters()}
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in params if id(p) not in of_norms],
            "weight_decay": options.weight_decay,
        },
        {
            "params": [p for p in params if id(p) in of_norms],
            "weight_decay": options.norm_weight_decay,
        },
    ]
    return torch.optim.SGD(groups, lr=options.base_rate(), momentum=options.momentum)


@contextlib.contextmanager
def _log_file(path):
    """What is logged also goes to the end of a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
