"""A run from its first step, or the one that it was stopped at, to its last."""

import json
import os
import platform
import statistics
import time

import torch
import torchvision

import evonorm_plugins
from evonorm_plugins.classification.config import MODEL_KEYS
from evonorm_plugins.classification.data import open_data
from evonorm_plugins.classification.trainer import Trainer, check_size
from evonorm_plugins.errors import ConfigError, NonFiniteError
from evonorm_plugins.files import replacing
from evonorm_plugins.training.checkpoint import Format, loading
from evonorm_plugins.training.config import check_unchanged, to_dict
from evonorm_plugins.training.memory import check_workers, peak_memory
from evonorm_plugins.training.precision import check_precision
from evonorm_plugins.training.ranks import Ranks, Stop
from evonorm_plugins.training.records import Records
from evonorm_plugins.training.seeds import random_state, set_random_state

FORMAT = Format("evonorm-plugins classifier", needs={"config": dict, "classes": list})


def train(config, *, resume=False, on_epoch=None, ranks=None):
    """Train and validate a classifier.

    Args:
        config: :class:`evonorm_plugins.classification.config.Config`.
        resume: go on with what is in ``config.output_dir``, if anything is.
        on_epoch: called on the main rank with the record of every validation: ``epoch``, ``step``,
            ``lr``, ``train_loss``, ``train_accuracy``, ``val_loss``, ``val_accuracy``.
        ranks: the processes of the run; None: as torchrun started them, or this one.

    Returns:
        What is also in ``output_dir/result.json``: ``status`` ("done", or "stopped" after a
        signal), ``val_accuracy`` (0 to 1), ``epochs`` (the records), ``loss_curve``, times, memory,
        versions and the config.

    Raises:
        ConfigError, DataError, CheckpointError: what is wrong, before any work is done.
        NonFiniteError: training cannot go on; ``result.json`` has what was reached.
    """
    if ranks is not None:
        return Run(config, ranks, resume=resume, on_epoch=on_epoch).train()
    with Ranks(config.device, config.timeout_minutes) as ranks:
        return Run(config, ranks, resume=resume, on_epoch=on_epoch).train()


class Run:
    """Training of one config in one folder; see :func:`train`.

    ``checkpoint.pt`` is the newest state, ``best.pt`` the weights with the best accuracy.
    """

    def __init__(self, config, ranks, *, resume=False, on_epoch=None):
        self.config, self.ranks, self.on_epoch = config, ranks, on_epoch
        self.path = os.path.join(config.output_dir, "checkpoint.pt")
        check_precision(config.precision, ranks.device)
        check_workers(config.workers)
        state = FORMAT.resumed(self.path, resume=resume)
        self.data = open_data(config, ranks.rank, ranks.size)
        if state:
            self._check_state(state)
        check_size(config, len(self.data.classes), ranks)
        self.trainer = Trainer(config, ranks, self.data)
        whole = len(self.data.train) // self.trainer.images_per_step
        self.steps_per_epoch = config.steps_per_epoch or whole
        self.steps = config.steps or config.epochs * self.steps_per_epoch
        self.epochs, self.curve, self.seconds = [], [], 0.0
        # Steps, loss, share of right answers: since the last validation, since the last line.
        self.epoch_sums, self.line_sums, self.times = [0.0] * 3, [0.0] * 3, []
        self.saved = state is not None  # whether there is a checkpoint to go on from
        if state:
            loading(self.path, self._load_state, state)

    def train(self):
        """Take the steps that are left; see :func:`train`."""
        config, trainer = self.config, self.trainer
        self.records = Records(
            to_dict(config),
            config.output_dir,
            trainer.step,
            self.steps,
            is_main=self.ranks.is_main,
            progress=config.progress,
        )
        if self.ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            self._describe()
            self._save_best()  # where the run was ended after the checkpoint of this step
            self.records.start()
            status = self._loop()
        except NonFiniteError as error:
            error.result = self._write_result("not finite")
            raise
        finally:
            self.records.close()
        return self._write_result(status)

    def _loop(self):
        trainer, started = self.trainer, time.perf_counter() - self.seconds
        batches = iter(trainer.data.train.batches(trainer.step))
        last = time.perf_counter()
        with Stop() as stop:
            while trainer.step < self.steps:
                values = trainer.train_step(batches, self.steps, self.steps_per_epoch)
                now = time.perf_counter()
                self.times.append(now - last)
                self._take_in([1.0, *values])
                self.seconds = now - started
                stopped = self.ranks.any(stop.name)
                self._after_step(stopped)
                if stopped:
                    return "stopped"
                last = time.perf_counter()
        return "done"

    def _take_in(self, values):
        for sums in (self.epoch_sums, self.line_sums):
            sums[:] = [s + v for s, v in zip(sums, values, strict=True)]
        self.records.advance()

    def _after_step(self, stopped):
        config, step = self.config, self.trainer.step
        last = step == self.steps
        if step % config.log_every == 0 or last:
            self._line()
        epoch_ends = step % self.steps_per_epoch == 0
        epoch = step // self.steps_per_epoch
        validated = epoch_ends and config.eval_every and epoch % config.eval_every == 0
        validated = validated or last
        if validated:
            self._validate(step / self.steps_per_epoch)
        every = config.checkpoint_every
        # Before the best: a new run refuses a folder with that alone.
        first = self._is_best() and not self.saved
        if every and (last or stopped or first or (epoch_ends and epoch % every == 0)):
            self._save()
        self._save_best()
        if validated:
            self._report()

    def _line(self):
        count, loss, accuracy = self.line_sums
        self.line_sums = [0.0] * 3
        rate = self.trainer.images_per_step / statistics.median(self.times)
        step, lr = self.trainer.step, self.trainer.optimizer.param_groups[0]["lr"]
        self.curve.append([step, loss / count])
        values = {"loss": loss / count, "accuracy": accuracy / count, "lr": lr}
        self.records.line(step, {**values, "images_per_second": rate, "seconds": self.seconds})
        self.records.show(loss=f"{loss / count:.3f}", **{"img/s": f"{rate:.0f}"})

    def _validate(self, epoch):
        count, loss, accuracy = self.epoch_sums
        self.epoch_sums = [0.0] * 3
        record = {
            "epoch": epoch,
            "step": self.trainer.step,
            "lr": self.trainer.optimizer.param_groups[0]["lr"],
            "train_loss": loss / count,
            "train_accuracy": accuracy / count,
            **self.trainer.evaluate(),
        }
        self.epochs.append(record)
        self.records.line(record["step"], record)
        self.records.say(
            f"epoch {epoch:.4g}, step {record['step']}: train loss {record['train_loss']:.4f}, "
            f"val loss {record['val_loss']:.4f}, val accuracy {record['val_accuracy']:.4f}"
        )

    def _report(self):
        if not self.ranks.is_main:
            return
        self._write_result("running")
        if self.on_epoch:
            self.on_epoch(self.epochs[-1])

    def _is_best(self):
        """Whether this step was validated and is the best so far."""
        if not self.epochs or self.epochs[-1]["step"] != self.trainer.step:
            return False
        *before, last = (r["val_accuracy"] for r in self.epochs)
        return last > max(before, default=-1.0)

    def _describe(self):
        config, trainer = self.config, self.trainer
        at = f" from step {trainer.step}" if trainer.step else ""
        self.records.say(
            f"{config.model} with {config.norm}, {self._parameters():,} parameters; "
            f"{len(self.data.train)} images of {len(self.data.classes)} classes, "
            f"{self.data.val_length} to validate on; {self.steps} steps{at} in {config.output_dir}"
        )
        self.records.say(
            f"{self.ranks.size} x {self.ranks.device.type}, {config.precision}; "
            f"{trainer.images_per_step} images an update = {self.ranks.size} ranks x "
            f"{config.accumulations} accumulations x {config.batch_size}; lr {trainer.lr:.4g}"
        )

    def _parameters(self):
        return sum(p.numel() for p in self.trainer.model.parameters())

    # ---- files ----

    def _write_result(self, status):
        last = self.epochs[-1] if self.epochs else {}
        step_time = statistics.median(self.times) if self.times else None
        result = {
            "status": status,
            "step": self.trainer.step,
            "steps": self.steps,
            **{k: last.get(k) for k in ("train_loss", "val_loss", "val_accuracy")},
            "best_val_accuracy": max((r["val_accuracy"] for r in self.epochs), default=None),
            "parameters": self._parameters(),
            "step_seconds_median": step_time,
            "images_per_second": step_time and self.trainer.images_per_step / step_time,
            "seconds": self.seconds,
            "peak_memory_mib": peak_memory(self.ranks.device) / 2**20,
            "epochs": self.epochs,
            "loss_curve": self.curve,
            "config": to_dict(self.config),
            "versions": _versions(self.ranks),
        }
        if self.ranks.is_main:
            with replacing(os.path.join(self.config.output_dir, "result.json")) as partial:
                partial.write_text(json.dumps(result, indent=1))
        return result

    def _save_best(self):
        if not (self.config.checkpoint_every and self.ranks.is_main and self._is_best()):
            return
        path = os.path.join(self.config.output_dir, "best.pt")
        if FORMAT.is_of(path, "record", self.epochs[-1]):
            return
        model = self.trainer.ema.module if self.trainer.ema else self.trainer.model
        state = {
            "config": to_dict(self.config),
            "classes": self.data.classes,
            "mean": self.data.mean,
            "std": self.data.std,
            "record": self.epochs[-1],
            "model": model.state_dict(),
        }
        FORMAT.save(state, path)

    def _save(self):
        random_states = self.ranks.gather(random_state(self.ranks.device))
        self.saved = True
        if not self.ranks.is_main:
            return
        state = {
            "config": to_dict(self.config),
            "classes": self.data.classes,
            "images": len(self.data.train),
            "epochs": self.epochs,
            "curve": self.curve,
            "seconds": self.seconds,
            "epoch_sums": self.epoch_sums,
            "line_sums": self.line_sums,
            "random": random_states,
            **self.trainer.state(),
        }
        FORMAT.save(state, self.path)

    def _check_state(self, state):
        check_unchanged(self.path, state["config"], to_dict(self.config), MODEL_KEYS)
        if state["classes"] != self.data.classes:
            raise ConfigError(
                f"{self.path} was trained on {len(state['classes'])} classes, the data has "
                f"{len(self.data.classes)}: other ones, or in another order"
            )

    def _load_state(self, state):
        self.trainer.load_state(state)
        for name in ("epochs", "curve", "seconds", "epoch_sums", "line_sums"):
            setattr(self, name, state[name])
        if self.ranks.rank < len(state["random"]):
            set_random_state(state["random"][self.ranks.rank], self.ranks.device)


def _versions(ranks):
    cuda = ranks.device.type == "cuda"
    return {
        "evonorm_plugins": evonorm_plugins.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(ranks.device) if cuda else platform.processor(),
        "ranks": ranks.size,
        "threads": torch.get_num_threads(),
    }
