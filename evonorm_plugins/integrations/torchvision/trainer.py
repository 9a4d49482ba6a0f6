"""Iterations of training: losses, gradients, rates, and what went wrong where one is not finite."""

import math
from typing import Any

import torch
from torch import nn

from evonorm_plugins.errors import NonFiniteError
from evonorm_plugins.integrations.model_norms import is_norm
from evonorm_plugins.integrations.non_finite import first_non_finite
from evonorm_plugins.integrations.torchvision.config import Options
from evonorm_plugins.training.seeds import random_state, set_random_state


class Trainer:
    """SGD of a detector.

    Attributes:
        iteration: of the next step, counted from 0.
        loss: of the last step, NaN before the first.

    Args:
        model: a detector of torchvision, on its device.
        options: :class:`~evonorm_plugins.integrations.torchvision.config.Options`.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.model, self.options = model, options
        self.device = next(model.parameters()).device
        self.optimizer = _optimizer(model, options)
        self.iteration, self.loss = 0, math.nan

    def state_dict(self) -> dict[str, Any]:
        """What training goes on from, the model aside."""
        return {
            "iteration": self.iteration,
            "optimizer": self.optimizer.state_dict(),
            "random_state": random_state(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.iteration = state["iteration"]
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random_state"], self.device)

    def step(self, entries: list) -> None:
        """One iteration.

        Args:
            entries: ``(image, target, id)`` of each image of the batch.

        Raises:
            NonFiniteError: the loss or the gradient is not finite; nothing was changed.
        """
        images = [image.to(self.device) for image, _, _ in entries]
        targets = [{k: v.to(self.device) for k, v in t.items()} for _, t, _ in entries]
        rate = self.options.rate(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.model(images, targets)
        values = {name: loss.item() for name, loss in losses.items()}
        self.loss = sum(values.values())
        if not math.isfinite(self.loss):
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            raise NonFiniteError(self._diagnosis("loss", shown, images, targets, entries))
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        if self.options.clip_gradients:
            norm = torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.options.clip_gradients
            )
            if not torch.isfinite(norm):
                shown = f"norm {norm.item()} at loss {self.loss:.4g}"
                raise NonFiniteError(self._diagnosis("gradient", shown, images, targets, entries))
        self.optimizer.step()
        self.iteration += 1

    def _diagnosis(self, what: str, values: str, images: list, targets: list, entries: list) -> str:
        return (
            f"the {what} is not finite at iteration {self.iteration}: {values}. "
            f"{first_non_finite(self.model, images, targets)}. Learning rate "
            f"{self.optimizer.param_groups[0]['lr']:g}, image ids {[k for _, _, k in entries]}. "
            "A lower rate, a longer warm-up or a lower limit of gradients often helps"
        )


def _optimizer(model: nn.Module, options: Options) -> torch.optim.SGD:
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
