"""The training of one network with a candidate layer, as far as it has got."""

import contextlib
import functools

import torch

from evonorm_plugins.classification.trainer import Trainer
from evonorm_plugins.errors import NonFiniteError
from evonorm_plugins.layers.graph.module import GraphNormAct
from evonorm_plugins.search.config import training_config
from evonorm_plugins.search.data import task_data
from evonorm_plugins.training.ranks import Ranks
from evonorm_plugins.training.seeds import random_state, set_random_state


class Training:
    """A network with a graph's layer, and its training as far as it has got.

    What is trained depends on graph, task and anchor alone, and on one thread of a CPU the weights
    are the same bit for bit, in however many parts it is trained. torch's own random numbers are
    left as they were.

    Args:
        graph: :class:`evonorm_plugins.layers.graph.graph.Graph`.
        task: checked :class:`Task`.
        anchor: name of the model.

    Raises:
        ConfigError: the model cannot be built, or there is no such device.
        DataError: see :func:`task_data`.
    """

    def __init__(self, graph, task, anchor):
        norm = functools.partial(GraphNormAct, graph=graph, groups=task.groups, eps=task.eps)
        config, self.data = training_config(task, anchor, norm), task_data(task)
        ranks = Ranks(task.device)
        self.device, self.steps = ranks.device, task.training_steps
        self.failed_at = None  # the step that was not finite
        with self._forked():
            self.trainer = Trainer(config, ranks, self.data)
            self._random = random_state(self.device)
        self._batches = iter(self.data.train.batches(0))
        self._per_epoch = len(self.data.train) // task.batch_size

    def go_on(self, until):
        """Train until ``until`` steps are done in all; returns whether all of them were finite.

        The step with a loss or a gradient that is not finite is not done, nor any after it.
        """
        with self.own_random_numbers():
            while self.failed_at is None and self.trainer.step < until:
                try:
                    self.trainer.train_step(self._batches, self.steps, self._per_epoch)
                except NonFiniteError:
                    self.failed_at = self.trainer.step + 1
        return self.failed_at is None

    def accuracy(self):
        """Share of right answers, 0 to 1, on the validation images.

        A training that failed counts as guessing, 1 / classes, whatever its last weights give.
        """
        if self.failed_at is not None:
            return 1 / len(self.data.classes)
        return self.trainer.evaluate()["val_accuracy"]

    @contextlib.contextmanager
    def own_random_numbers(self):
        """torch's random numbers are those of this training, which dropout would draw from."""
        with self._forked():
            set_random_state(self._random, self.device)
            yield
            self._random = random_state(self.device)

    def _forked(self):
        cuda = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices=cuda)
