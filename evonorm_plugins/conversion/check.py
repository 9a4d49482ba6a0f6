"""Whether a model still activates what a norm-activation layer has activated."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evonorm_plugins.conversion import kinds
from evonorm_plugins.layers import NormAct


def activations_after_norm_acts(model: nn.Module, *inputs: Any) -> list[tuple[str, str]]:
    """Run ``model(*inputs)`` and find activations of the very tensors that norm-acts return.

    It sees what runs, not what can be traced, so it holds for any model. Layers without activation
    (``apply_act=False``) count too.

    Returns:
        list: ``(name of the layer, name of the function)`` of every such call.
    """
    watcher = _Watcher()
    handles = [
        module.register_forward_hook(watcher.hook(name))
        for name, module in model.named_modules()
        if isinstance(module, NormAct)
    ]
    try:
        with watcher:
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return watcher.found


class _Watcher(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        # id -> (the tensor, which keeps the id its own; version; layer's name)
        self._outputs: dict[int, tuple[Tensor, int, str]] = {}

    def hook(self, name: str) -> Callable[..., None]:
        def remember(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._outputs[id(output)] = (output, output._version, name)

        return remember

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function = getattr(func, "__name__", "").rstrip("_")
        if function in kinds.FUNCTION_NAMES and args:
            output, version, name = self._outputs.get(id(args[0]), (None, 0, ""))
            # What was added to it in place makes it another value.
            if output is not None and output._version == version:
                self.found.append((name, function))
        return func(*args, **(kwargs or {}))
