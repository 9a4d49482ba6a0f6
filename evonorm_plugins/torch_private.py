"""Names that torch does not promise to keep, and what is done without them."""

import torch
from torch.autograd import forward_ad

try:
    # Of the functions that tell, this is the one that Dynamo takes for a number.
    _count_transforms = torch._C._functorch.get_dynamic_layer_stack_depth
    _ = forward_ad._current_level
except AttributeError:

    def is_transformed() -> bool:
        """False: this torch does not tell. Autograd then refuses what transforms do to a kernel."""
        return False

else:

    def is_transformed() -> bool:
        """Whether a transform of ``torch.func`` or forward-mode differentiation is at work.

        They look into plain operations alone.
        """
        return _count_transforms() > 0 or forward_ad._current_level >= 0
