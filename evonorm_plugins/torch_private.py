"""Names that torch does not promise to keep, all of them here, and what is done without them."""

import torch
from torch.autograd import forward_ad

try:
    _count_transforms = torch._C._functorch.get_dynamic_layer_stack_depth
    _ = forward_ad._current_level
except AttributeError:

    def is_transformed() -> bool:
        """False: this torch does not tell. Autograd then refuses what transforms do to a kernel."""
        return False

else:

    def _in_transforms() -> bool:
        return _count_transforms() > 0

    # What torch.compiler.assume_constant_result() does, which imports all of Dynamo. Up to torch
    # 2.11 Dynamo cannot trace the function in there; it compiles anew for other transforms anyway.
    _in_transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def is_transformed() -> bool:
        """Whether a transform of ``torch.func`` or forward-mode differentiation is at work.

        They look into plain operations alone.
        """
        return _in_transforms() or forward_ad._current_level >= 0


try:
    _count_modes = torch._C._len_torch_dispatch_stack
    _innermost_transform = torch._C._functorch.peek_interpreter_stack
    _is_profiled = torch.autograd._profiler_enabled
    _tracing = torch._C._get_tracing_state
    _ = forward_ad._current_level
except AttributeError:

    def nobody_looks_on() -> bool:
        """False: this torch does not tell. All calls then go through the dispatcher."""
        return False

else:

    def nobody_looks_on() -> bool:
        """Whether no mode, transform, tracer or profiler has a say in what operators do."""
        return (
            not _count_modes()
            and _innermost_transform() is None
            and forward_ad._current_level < 0
            and _tracing() is None
            and not _is_profiled()
        )


try:
    _ = torch.compiler._is_exporting_flag
except AttributeError:
    # Safe: where a compiler is taken for an export, its graph holds the plain formula.
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
else:

    def is_exporting() -> bool:
        """Whether ``torch.export`` is at work.

        Not torch's function of this name, which Dynamo took for True up to torch 2.11.
        """
        return torch.compiler._is_exporting_flag


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether hooks of a module's own are called with its forward or its backward."""
    return bool(
        getattr(module, "_forward_hooks", None)
        or getattr(module, "_forward_pre_hooks", None)
        or getattr(module, "_backward_hooks", None)
        or getattr(module, "_backward_pre_hooks", None)
    )
