"""Training ends at the first loss that is not finite, and says where that came from."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import nn

from evonorm_plugins.errors import NonFiniteError
from evonorm_plugins.integrations.detectron2.processes import PATIENCE
from evonorm_plugins.integrations.non_finite import NOT_AGAIN, first_non_finite


class LossWatch:
    """Looks at every loss of a model that trains.

    Args:
        model: of Detectron2, or the ``DistributedDataParallel`` around one.
        advice: what to change, for the message.
    """

    def __init__(self, model: nn.Module, advice: str) -> None:
        inside = getattr(model, "module", None)
        self.detector = inside if isinstance(inside, nn.Module) else model
        self.advice = advice
        self.detector.register_forward_pre_hook(self._remember_batch)
        self._check = self.detector.register_forward_hook(self._check_losses)

    @contextlib.contextmanager
    def step(self, iteration: int, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """A step of training is within.

        Raises:
            NonFiniteError: a loss is not finite; names the first parameter or layer that is not.
        """
        try:
            yield
        except FloatingPointError as error:
            # Raised by the check below, or by the RPN over its own predictions.
            self._check.remove()
            raise NonFiniteError(self._diagnosis(error, iteration, optimizer)) from error

    def _remember_batch(self, model: nn.Module, inputs: tuple) -> None:
        self._batch = inputs[0]

    def _check_losses(
        self, model: nn.Module, inputs: tuple, losses: dict[str, torch.Tensor] | torch.Tensor
    ) -> None:
        if isinstance(losses, torch.Tensor):  # of a model with one loss
            losses = {"total_loss": losses}
        if model.training and not all(torch.isfinite(v).all() for v in losses.values()):
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
            raise FloatingPointError(values)

    def _diagnosis(self, error: Exception, iteration: int, optimizer: torch.optim.Optimizer) -> str:
        rank = f" on rank {comm.get_rank()}" if comm.get_world_size() > 1 else ""
        rates = sorted({group["lr"] for group in optimizer.param_groups})
        records = [x for x in self._batch if isinstance(x, dict)]
        images = [x.get("image_id", x.get("file_name", "?")) for x in records]
        with _alone(self.detector):
            first = first_non_finite(self.detector, self._batch)
        if first == NOT_AGAIN and comm.get_world_size() > 1:
            # It may have come from another rank, with the statistics: that one says more.
            time.sleep(PATIENCE)
        return (
            f"the loss is not finite at iteration {iteration}{rank}: {str(error).rstrip('.')}. "
            f"{first}. Learning rate {', '.join(map(str, rates))}, image ids {images}. "
            f"{self.advice}"
        )


@contextlib.contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Within, no layer waits for other ranks, which do not run: it has this rank's statistics."""
    before: list[tuple[nn.Module, str, Any]] = []
    if comm.get_world_size() > 1:
        me = [torch.distributed.get_rank()]
        group = torch.distributed.new_group(me, backend="gloo", use_local_synchronization=True)
        for module in model.modules():
            if isinstance(module, NaiveSyncBatchNorm):
                before.append((module, "forward", module.forward))
                module.forward = nn.BatchNorm2d.forward.__get__(module)  # type: ignore[method-assign]
            elif hasattr(module, "process_group"):
                before.append((module, "process_group", module.process_group))
                module.process_group = group
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
