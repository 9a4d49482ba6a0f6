"""Names that torch does not promise to keep, all of them here, and what is done without them."""

import torch

try:
    _count_modes = torch._C._len_torch_dispatch_stack
    _innermost_transform = torch._C._functorch.peek_interpreter_stack
    _is_profiled = torch.autograd._profiler_enabled
except AttributeError:

    def nobody_looks_on():
        """False: this torch does not tell. All calls then go through the dispatcher."""
        return False

else:

    def nobody_looks_on():
        """Whether no mode, transform or profiler has a say in what operators do."""
        return not _count_modes() and _innermost_transform() is None and not _is_profiled()
