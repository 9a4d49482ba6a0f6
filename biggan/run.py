"""A run from its first step, or the one that it was stopped at, to its last."""

import os
import shutil
import time

from biggan import checkpoint
from biggan.config import MODEL_KEYS
from biggan.data import TrainingData, check_source
from biggan.records import Records, diversity, fixed_samples
from biggan.scores import Scorer, check_extractor
from biggan.trainer import Trainer, check_size
from evonorm_plugins.data.open import open_source
from evonorm_plugins.errors import CollapseError, ConfigError
from evonorm_plugins.files import replacing
from evonorm_plugins.training.checkpoint import loading
from evonorm_plugins.training.config import check_unchanged, to_dict
from evonorm_plugins.training.memory import check_workers
from evonorm_plugins.training.precision import check_precision
from evonorm_plugins.training.ranks import Stop
from evonorm_plugins.training.seeds import random_state, set_random_state

# Of what it has been: samples that differ by less than this share of it are all the same.
_COLLAPSED = 0.05


class Run:
    """Training of one config in one folder.

    ``checkpoint.pt`` is the newest state, ``good.pt`` the newest before a collapse was seen,
    ``best.pt`` the averaged generator with the best score (the newest where there are no scores).

    Args:
        config: :class:`biggan.config.Config`.
        ranks: :class:`evonorm_plugins.training.ranks.Ranks`.
        resume: go on with what is in ``config.output_dir``, if anything is.

    Raises:
        ConfigError, DataError, CheckpointError: what is wrong, before any work is done.
    """

    def __init__(self, config, ranks, *, resume=False):
        self.config, self.ranks = config, ranks
        self.path = os.path.join(config.output_dir, "checkpoint.pt")
        check_precision(config.precision, ranks.device)
        check_workers(config.workers)
        if config.extractor:
            check_extractor(config.extractor)  # before a million images are listed
        state = checkpoint.FORMAT.resumed(self.path, resume=resume)
        self.source = open_source(config.data, resolution=config.resolution)
        check_source(self.source, config)
        config.num_classes = len(self.source.classes)
        self.notes = [] if state is None else loading(self.path, self._check_state, state)
        check_size(config, ranks)
        self.trainer = Trainer(config, ranks)
        self.scorer = Scorer(self.source, config, ranks) if config.extractor else None
        self.notes += [f"warning: {text}" for text in self.scorer.warnings] if self.scorer else []
        self.position, self.best, self.most_diverse, self.worse = 0, [], 0.0, 0
        self.score = None  # of this step, where it is one of the best
        self.saved = state is not None  # whether there is a checkpoint to go on from
        if state is not None:
            loading(self.path, self._load_state, state)
        where = f"resuming {config.output_dir} at step {self.trainer.step}"
        self.notes.insert(0, where if state else f"a new run in {config.output_dir}")

    def train(self):
        """Take the steps that are left.

        Returns:
            The name of the signal that ended the run early, or None.

        Raises:
            NonFiniteError, CollapseError, DataError, NoSpaceError: training cannot go on.
        """
        config, trainer = self.config, self.trainer
        data = self._data()
        records = Records(config, config.output_dir, trainer.step, self.ranks.is_main)
        try:
            for note in self.notes:
                records.say(note)
            self._describe(records)
            if self.score:  # where the run was ended after the checkpoint of this step
                self._save_best()
            batches = iter(data)
            records.start()
            with Stop() as stop:
                while trainer.step < config.steps:
                    records.add(*trainer.train_step(batches))
                    self.position += trainer.images_per_step
                    stopped = self.ranks.any(stop.name)
                    self._after_step(records, last=trainer.step == config.steps or stopped)
                    if stopped:
                        return stop.name or "another rank's signal"
            return None
        finally:
            records.close()

    def _data(self):
        return TrainingData(
            self.source,
            self.config,
            position=self.position,
            batch=self.trainer.batch,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            pin_memory=self.ranks.device.type == "cuda",
        )

    def _describe(self, records):
        config, trainer = self.config, self.trainer
        sizes = [
            sum(p.numel() for p in m.parameters())
            for m in (trainer.generator, trainer.discriminator)
        ]
        records.say(
            f"{len(self.source.labels)} images of {config.num_classes} classes; generator with "
            f"{config.norm} {sizes[0]:,} parameters, discriminator {sizes[1]:,}"
        )
        records.say(
            f"{self.ranks.size} x {self.ranks.device.type}, {config.precision}; batch "
            f"{config.batch_size} = {self.ranks.size} ranks x {config.accumulations} accumulations "
            f"x {trainer.batch}"
        )
        if self.ranks.is_main:
            rate = self._data().rate()
            records.say(f"the loader alone gives {rate:.0f} images/s on this rank")

    def _after_step(self, records, *, last):
        config, trainer = self.config, self.trainer
        step = trainer.step
        if step % config.log_every == 0 or last:
            records.write(step, records.means(self.ranks), trainer)
        healthy, self.score = True, None
        if step % config.sample_every == 0 or last:
            healthy = self._sample(records)
        if self.scorer and (step % config.score_every == 0 or last):
            self.score = self._score(records)
            healthy = self.worse < 2 and healthy
        if not healthy:
            good = os.path.join(config.output_dir, "good.pt")
            raise CollapseError(
                f"the generator has collapsed at step {step}; the last good checkpoint is "
                f"{good if os.path.exists(good) else 'none: it never was good'}"
            )
        # Before the best: a new run refuses a folder with that alone.
        if step % config.checkpoint_every == 0 or last or (self.score and not self.saved):
            self._save()
        self._save_best()

    def _sample(self, records):
        images = fixed_samples(self.trainer.ema.module, self.config)
        records.sheet(self.trainer.step, images)
        spread = diversity(images)
        records.line(self.trainer.step, {"sample_diversity": spread})
        self.most_diverse = max(self.most_diverse, spread)
        return spread >= _COLLAPSED * self.most_diverse

    def _score(self, records):
        """The score of this step where it is one of the best, else None."""
        start = time.perf_counter()
        score = self.scorer(self.trainer.ema.module)
        step, distance = self.trainer.step, score[self.scorer.distance]
        score["score_seconds"] = time.perf_counter() - start
        records.line(step, score)
        records.say(f"step {step}: {self.scorer.distance} {distance:.3f}")
        lowest = min((d for d, _ in self.best), default=float("inf"))
        self.worse = self.worse + 1 if distance > self.config.collapse_factor * lowest else 0
        self.best = sorted([*self.best, (distance, step)])[: self.config.keep_best]
        return score if (distance, step) in self.best else None

    def _save_best(self):
        step = self.trainer.step
        if not (self.score and self.ranks.is_main):
            return
        names = [f"best-{step}.pt", *(["best.pt"] if self.best[0][1] == step else [])]
        for name in names:
            path = os.path.join(self.config.output_dir, name)
            if not checkpoint.FORMAT.is_of(path, "score", self.score):
                self._save_generator(name, self.score)
        kept = {f"best-{step}.pt" for _, step in self.best}
        for name in os.listdir(self.config.output_dir):
            if name.startswith("best-") and name.endswith(".pt") and name not in kept:
                os.unlink(os.path.join(self.config.output_dir, name))

    def _save_generator(self, name, score=None):
        state = {
            "config": to_dict(self.config),
            "classes": self.source.classes,
            "step": self.trainer.step,
            "score": score,
            "ema": self.trainer.ema.module.state_dict(),
        }
        checkpoint.save(state, os.path.join(self.config.output_dir, name))

    def _save(self):
        random_states = self.ranks.gather(random_state(self.ranks.device))
        self.saved = True
        if not self.ranks.is_main:
            return
        state = {
            "config": to_dict(self.config),
            "classes": self.source.classes,
            "ranks": self.ranks.size,
            "position": self.position,
            "images": len(self.source.labels),
            "best": self.best,
            "score": self.score,
            "most_diverse": self.most_diverse,
            "worse": self.worse,
            "random": random_states,
            **self.trainer.state(),
        }
        checkpoint.save(state, self.path)
        if not self.worse:
            _link(self.path, os.path.join(self.config.output_dir, "good.pt"))
        if not self.scorer:
            self._save_generator("best.pt")

    def _check_state(self, state):
        """Notes about what differs from the run that is gone on with; raises where it must not."""
        before, now = state["config"], to_dict(self.config)
        if state["classes"] != self.source.classes:
            raise ConfigError(
                f"the checkpoint was trained on {len(state['classes'])} classes "
                f"({_some(state['classes'])}), the data has {len(self.source.classes)} "
                f"({_some(self.source.classes)})"
            )
        check_unchanged(self.path, before, now, MODEL_KEYS)
        changed = [k for k in now if before.get(k, now[k]) != now[k]]
        notes = [f"{k} was {before[k]!r}, is {now[k]!r}" for k in changed if k != "output_dir"]
        if state["images"] != len(self.source.labels):
            notes.append(
                f"the data had {state['images']} images, has {len(self.source.labels)}: their "
                "order is another from here on"
            )
        if state["ranks"] != self.ranks.size:
            notes.append(
                f"saved by {state['ranks']} ranks, goes on with {self.ranks.size}: images, latents "
                "and the batch of an update stay the same, sums are taken in another order; norms "
                "with batch statistics see "
                f"{self.config.batch_size // self.config.accumulations} images at a time"
            )
        return notes

    def _load_state(self, state):
        self.trainer.load_state(state)
        self.position = state["position"]
        self.best = [tuple(entry) for entry in state["best"]]
        self.most_diverse, self.worse = state["most_diverse"], state["worse"]
        self.score = state.get("score")
        if self.ranks.rank < len(state["random"]):
            set_random_state(state["random"][self.ranks.rank], self.ranks.device)


def _link(source, target):
    """Give a file a second name, replacing what had it: no copy of gigabytes."""
    with replacing(target) as partial:
        try:
            partial.unlink()
            os.link(source, partial)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, partial)


def _some(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
