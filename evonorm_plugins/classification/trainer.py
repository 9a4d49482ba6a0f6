"""One update of a classifier, and everything that it changes."""

import contextlib
import math

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from evonorm_plugins.classification.models import build_model
from evonorm_plugins.classification.optim import lr_factor, make_optimizer, scaled_lr
from evonorm_plugins.errors import ConfigError, NonFiniteError
from evonorm_plugins.layers import convert_cross_replica, moving_statistics_of
from evonorm_plugins.training.ema import EMA
from evonorm_plugins.training.memory import check_memory, weights_size
from evonorm_plugins.training.precision import autocast
from evonorm_plugins.training.seeds import mixed_seed


def check_size(config, num_classes, ranks):
    """Raise :class:`ConfigError` where a run cannot fit into memory, before it is tried.

    Args:
        config, ranks: as for :class:`Trainer`.
    """
    # Weights, gradients, and at least one moment of the optimizer.
    needed = 3 * weights_size(lambda: build_classifier(config, num_classes))
    what = f"model={config.model}" + ("" if config.width is None else f", width={config.width}")
    check_memory(needed, what, ranks.device)


class Trainer:
    """Model, average, optimizer, and the update that changes them.

    Args:
        config: checked :class:`evonorm_plugins.classification.config.Config`.
        ranks: :class:`evonorm_plugins.training.ranks.Ranks`.
        data: :class:`evonorm_plugins.classification.data.Data`.

    Raises:
        ConfigError: the model, its options or its norm.
    """

    def __init__(self, config, ranks, data):
        self.config, self.ranks, self.device, self.data = config, ranks, ranks.device, data
        torch.manual_seed(mixed_seed(config.seed) % 2**63)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        model = build_classifier(config, len(data.classes))
        self.model = model.to(self.device, memory_format=layout)
        if config.cross_replica:
            convert_cross_replica(self.model)
        self.layout, self.step = layout, 0
        mean_std = torch.tensor([data.mean, data.std], device=self.device)
        self.mean, self.std = mean_std[:, None, :, None, None].unbind()
        decay = config.ema_decay
        self.ema = EMA(self.model, decay, moving_statistics_of, warmup=True) if decay else None
        self.lr = scaled_lr(config, ranks.size)
        self.optimizer = make_optimizer(self.model, config, self.lr)
        fp16 = config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        if config.compile:
            self.model.compile()
        self.parallel = self._parallel()

    def _parallel(self):
        if self.ranks.size == 1:
            return self.model
        devices = [self.device] if self.device.type == "cuda" else None
        # Moving statistics are a rank's own until they are used: see evaluate().
        return DistributedDataParallel(
            self.model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    @property
    def images_per_step(self):
        """Images of an update, over all ranks and accumulations."""
        return self.config.batch_size * self.config.accumulations * self.ranks.size

    def train_step(self, batches, steps, steps_per_epoch):
        """One update; returns the loss and the share of right answers, means over all ranks.

        Args:
            batches: an iterator of ``(uint8 images, labels)`` of this rank.
            steps, steps_per_epoch: what the schedule depends on.

        Raises:
            NonFiniteError: before the update that it would spoil.
        """
        config, totals = self.config, torch.zeros(2, device=self.device)
        lr = self.lr * lr_factor(config, self.step, steps, steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for k in range(config.accumulations):
            images, labels = next(batches)
            labels = labels.to(self.device, non_blocking=True)
            with self._sync(last=k == config.accumulations - 1):
                with self._autocast():
                    logits = self.parallel(self.inputs(images)).float()
                loss = nn.functional.cross_entropy(
                    logits, labels, label_smoothing=config.label_smoothing
                )
                self.scaler.scale(loss / config.accumulations).backward()
            right = (logits.detach().argmax(1) == labels).float().mean()
            totals += torch.stack([loss.detach(), right]) / config.accumulations
        # A loss that is not finite on one rank is not on any after this: all stop together.
        loss, accuracy = self.ranks.mean(totals).tolist()
        self._apply(loss)
        self.step += 1
        if self.ema:
            self.ema.update(self.step)
        return loss, accuracy

    @torch.no_grad()
    def evaluate(self):
        """``val_loss`` and ``val_accuracy`` (0 to 1) of the average, or the model without one."""
        model = self.ema.module if self.ema else self.model
        # Every rank has statistics of its own images: those of the main rank are used by all.
        self.ranks.broadcast([b for b in model.buffers() if b.is_floating_point()])
        model.eval()
        totals = torch.zeros(3, device=self.device, dtype=torch.float64)
        for images, labels in self.data.val_batches():
            labels = labels.to(self.device, non_blocking=True)
            with self._autocast():
                logits = model(self.inputs(images)).float()
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            right = (logits.argmax(1) == labels).sum()
            totals += torch.stack([loss, right, torch.tensor(len(labels), device=self.device)])
        loss, right, count = self.ranks.sum(totals).tolist()
        return {"val_loss": loss / count, "val_accuracy": right / count}

    def inputs(self, images):
        """What the model takes, on its device, of uint8 images ``(N, 3, H, W)``."""
        x = images.to(self.device, non_blocking=True).float().div_(255)
        return x.sub_(self.mean).div_(self.std).contiguous(memory_format=self.layout)

    def _autocast(self):
        return autocast(self.config.precision, self.device)

    def _sync(self, *, last):
        if last or self.ranks.size == 1:
            return contextlib.nullcontext()
        return self.parallel.no_sync()

    def _apply(self, loss):
        if not math.isfinite(loss):
            raise NonFiniteError(self._not_finite(f"the training loss is {loss}"))
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters], foreach=True)
        # The scaler leaves out steps with infinite gradients and lowers its factor.
        if not (torch.isfinite(norm) or self.scaler.is_enabled()):
            raise NonFiniteError(self._not_finite(f"the norm of the gradients is {norm}"))
        if self.config.clip_grad:
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip_grad, norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _not_finite(self, what):
        lr = self.optimizer.param_groups[0]["lr"]
        return (
            f"step {self.step + 1}: {what} (lr {lr:.3g}); the weights are those of step "
            f"{self.step}. A lower lr, a longer warmup or clip_grad may help"
        )

    # ---- state ----

    def state(self):
        """Weights, average, optimizer, scaler and step, for a checkpoint."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state):
        """Go on from what :meth:`state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"] or state["model"])
        self.step = state["step"]


def build_classifier(config, num_classes):
    """The model of a config, with its width, options and norm.

    Args:
        config: checked :class:`evonorm_plugins.classification.config.Config`.

    Raises:
        ConfigError: the model, its options or its norm.
    """
    width = {} if config.width is None else {"width": config.width}
    try:
        return build_model(
            config.model, num_classes, config.norm, **{**config.model_options, **width}
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(f"model={config.model}: {error}") from None
