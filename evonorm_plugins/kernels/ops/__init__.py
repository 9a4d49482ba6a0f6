"""The kernels as operators ``torch.ops.evonorm.*`` with gradients of every order.

Gradients of first order are fused kernels; those of higher order come from the plain formulas. The
statistics that the operators return beside ``y`` are what the backward pass needs besides ``x``;
they have no gradient.

``x`` may be empty and of any strides: here it is made dense, its parameters float32. Whatever a
kernel could not compute is refused with a ValueError before it is called.
"""

from evonorm_plugins.kernels.ops.affine import apply_affine
from evonorm_plugins.kernels.ops.average import move_average, move_moments
from evonorm_plugins.kernels.ops.batch import apply_batch
from evonorm_plugins.kernels.ops.batch_norm import apply_batch_norm
from evonorm_plugins.kernels.ops.batch_of_group import apply_batch_of_group
from evonorm_plugins.kernels.ops.group import apply_group, check_activation, check_group_kind
from evonorm_plugins.kernels.ops.operator import is_direct
from evonorm_plugins.kernels.ops.sample import apply_sample

__all__ = [
    "apply_affine",
    "apply_batch",
    "apply_batch_norm",
    "apply_batch_of_group",
    "apply_group",
    "apply_sample",
    "check_activation",
    "check_group_kind",
    "is_direct",
    "move_average",
    "move_moments",
]
