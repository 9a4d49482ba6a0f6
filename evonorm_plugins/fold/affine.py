"""What a norm or norm-activation layer is made of in inference: affine transforms, and the rest."""

from torch import Tensor, nn

from evonorm_plugins import layers
from evonorm_plugins.fold.absorb import exact
from evonorm_plugins.layers.baselines import BatchNormAct
from evonorm_plugins.layers.graph.module import GraphNormAct, SyncGraphNormAct

_TORCH_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_BATCH_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    layers.CrossReplicaBatchNorm1d,
    layers.CrossReplicaBatchNorm2d,
    layers.CrossReplicaBatchNorm3d,
)
# f(x) * gamma + beta; f is the identity where no activation is applied.
_AFFINE_LAST = (
    layers.EvoNormB0,
    layers.EvoNormB1,
    layers.EvoNormB2,
    layers.EvoNormS0,
    layers.EvoNormS1,
    layers.EvoNormS2,
    layers.SyncEvoNormB0,
    layers.SyncEvoNormB1,
    layers.SyncEvoNormB2,
    layers.RandomLayer,
    layers.RandomRejLayer,
    layers.RSRejLayer,
    layers.SyncRSRejLayer,
    GraphNormAct,
    SyncGraphNormAct,
)
_AFFINE_LAST_WITHOUT_ACTIVATION = (layers.FRN, layers.PixelNormReLU)
_ACTIVATIONS = {layers.BNReLU: nn.ReLU, layers.BNSwish1: nn.SiLU}


class MatrixOnly(nn.Module):
    """In place of a batch normalization of ``(N, C)`` that a linear layer has taken over.

    In ``(N, C, L)`` channels lie where a linear layer has none: it is refused.
    """

    def forward(self, x):
        if x.dim() != 2:
            raise ValueError(
                "a BatchNorm1d was folded into the linear layer before it, for (N, C); "
                f"got {tuple(x.shape)}"
            )
        return x


class TakesDims:
    """A hook: refuses what has not as many dimensions as a model was folded for."""

    def __init__(self, dims):
        self.dims = dims

    def __call__(self, module, inputs):
        (x, *_) = inputs
        if isinstance(x, Tensor) and x.dim() != self.dims:
            raise ValueError(
                f"{type(module).__name__} was folded into layers after it, for {self.dims} "
                f"dimensions; got {tuple(x.shape)}"
            )


def is_norm(module):
    """Whether ``module`` is a norm or norm-activation layer, one that can be folded or not."""
    own = (layers.NormAct, layers.ConditionalNormAct)
    return isinstance(module, (*own, *_TORCH_NORMS)) or is_frozen_batch_norm(module)


def is_frozen_batch_norm(module):
    """Torchvision and Detectron2 each have such a class, with the same name and buffers."""
    return type(module).__name__ == "FrozenBatchNorm2d"


def _is_timms(module):
    """Whether ``module`` is timm's batch normalization with dropout and activation after it."""
    return type(module).__name__ == "BatchNormAct2d"


def first_affine(module):
    """Scale and shift ``(C,)`` that ``module`` begins with, or None."""
    norm = _batch_norm(module)
    if norm is not None:
        scale = (exact(norm.running_var) + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * exact(norm.weight)
        shift = -exact(norm.running_mean) * scale
        return scale, shift if norm.bias is None else shift + exact(norm.bias)
    if type(module) in _AFFINE_LAST and module.affine and not module.apply_act:
        return exact(module.weight), exact(module.bias)
    return None


def last_affine(module):
    """Scale and shift ``(C,)`` that ``module`` ends with on ``(N, C, ...)``, or None."""
    if is_affine(module):
        return first_affine(module)
    without_activation = not getattr(module, "apply_act", True)
    kinds = _AFFINE_LAST_WITHOUT_ACTIVATION if without_activation else _AFFINE_LAST
    if type(module) in kinds and module.affine and not module.affine_is_folded:
        return exact(module.weight), exact(module.bias)
    return None


def is_affine(module):
    """Whether ``module`` is an affine transform and nothing else."""
    activates = _is_timms(module) or (isinstance(module, layers.NormAct) and module.apply_act)
    return first_affine(module) is not None and not activates


def drop_first_affine(module, *, of_matrices=False):
    """Make ``module`` what is left of it once another layer does what it begins with.

    It stays the same object, for a model may hold it under several names, or in a list.

    Args:
        of_matrices: whether it was right for ``(N, C)`` alone.
    """
    if of_matrices:
        left = MatrixOnly()
    elif is_affine(module):
        left = nn.Identity()
    elif _is_timms(module):
        left = nn.Sequential(module.drop, module.act)
    elif type(module) in _ACTIVATIONS:
        # In place: nothing else reads what the convolution writes.
        left = _ACTIVATIONS[type(module)](inplace=True)
    else:
        module, left = module.norm, nn.Identity()
    module.__class__, module.__dict__ = type(left), left.eval().__dict__


def why_not_affine(module):
    """Why ``module`` neither begins nor ends with an affine transform that could be folded."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        no_statistics = module.running_var is None
        return "it has no moving statistics" if no_statistics else "its class is not known"
    if not isinstance(module, layers.NormAct | layers.ConditionalNormAct):
        return "it takes statistics of its input"
    if not getattr(module, "affine", False):
        return "gamma and beta come with each call"
    if module.affine_is_folded:
        return "gamma and beta are folded already"
    if not getattr(module, "apply_act", True):
        return "it takes statistics of its input"
    return "gamma and beta come between statistics of the input and an activation"


def _batch_norm(module):
    """The batch normalization with moving statistics that ``module`` is or begins with, or None."""
    if isinstance(module, BatchNormAct) and module.affine:
        module = module.norm
    is_known = type(module) in _BATCH_NORMS or _is_timms(module)
    has_statistics = is_known and module.running_var is not None
    return module if has_statistics or is_frozen_batch_norm(module) else None
