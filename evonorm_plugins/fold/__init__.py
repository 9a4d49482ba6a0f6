"""Normalization and affine parameters folded into neighbouring convolutions, for inference.

In inference a batch normalization is an affine transform of every channel, and so is what is left
of an EvoNorm where no activation follows: the convolution before it does it as well. Gamma and beta
of an EvoNorm come after everything else, so the convolutions that read it do them. Numbers of the
paper's Figure 11 are those of such models.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from evonorm_plugins.fold import absorb, affine
from evonorm_plugins.fold.graph import CannotFoldError, ModelGraph, Readers
from evonorm_plugins.fold.report import FoldedNorm, FoldReport

__all__ = ["FoldReport", "FoldedNorm", "fold_for_inference"]

# Beyond, beta / gamma could overflow where activations are in half precision.
_LARGEST_SHIFT = 1e4


def fold_for_inference(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with fewer parameters and the same outputs.

    - A batch normalization, also that of BN-ReLU and its kin, and an EvoNorm without activation go
      into the convolution or linear layer before them, or else into those after.
    - Gamma and beta of an EvoNorm go into the convolutions and linear layers after it, through
      pooling, flattening, and for gamma the multiplication of squeeze-excitation. Beta stays where
      one of them pads with zeros, for these are not shifted, or would get more biases than there
      are betas.

    Whatever cannot be folded exactly stays. Outputs differ by rounding, those of layers inside the
    model by the factors folded. The copy is of the same class, in eval mode and must stay in it; it
    has a ``fold_report``, a :class:`FoldReport` that says for every norm what was folded where, and
    what stayed and why.

    Raises:
        TypeError: ``model`` is no ``torch.nn.Module``, or a TorchScript one.
        ValueError: the model is in training mode, has no values (meta device), or torch.fx cannot
            trace it.
    """
    _check_model(model)
    folded = copy.deepcopy(model)
    graph = ModelGraph(folded)
    nodes = [node for node in graph.nodes if affine.is_norm(graph.module(node))]
    # Backwards first: a convolution that has a bias by then can take a beta at no cost.
    done = {node: _fold(_fold_back, graph, node) for node in nodes}
    for node in nodes:
        if not done[node].folded and affine.last_affine(graph.module(node)):
            ahead = _fold(_fold_ahead, graph, node)
            # The layer before is the natural one for what could go either way.
            if ahead.folded or not affine.is_affine(graph.module(node)):
                done[node] = ahead
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, folded))
    folded.fold_report = FoldReport(  # type: ignore[assignment]
        tuple(done.values()), before, after
    )
    return folded


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"a torch.nn.Module can be folded, not a {type(model).__name__}")
    for name, module in model.named_modules():
        if module.training:
            where = f" ({name!r})" if name else ""
            raise ValueError(
                f"{type(module).__name__}{where} is in training mode; call model.eval() first"
            )
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ValueError(f"{name!r} is on the meta device: it has no values to fold")


def _fold(step: Callable[..., Any], graph: ModelGraph, node: fx.Node) -> FoldedNorm:
    """The :class:`FoldedNorm` that says what ``step(graph, node)`` did."""
    kind = type(graph.module(node)).__name__
    try:
        graph.check_alone(node)
        return FoldedNorm(str(node.target), kind, *step(graph, node))
    except CannotFoldError as error:
        return FoldedNorm(str(node.target), kind, reason=str(error))


def _fold_back(graph: ModelGraph, node: fx.Node) -> tuple[str, tuple[str, ...]]:
    """Let the layer before do the affine transform that a norm begins with."""
    module = graph.module(node)
    first = affine.first_affine(module)
    if first is None:
        raise CannotFoldError(affine.why_not_affine(module))
    path, layer = graph.producer(node)
    of_linear = isinstance(layer, nn.Linear) and graph.dims(node) != 2
    of_matrices = isinstance(module, nn.BatchNorm1d | nn.SyncBatchNorm)
    if absorb.out_channels(layer) != first[0].numel() or (of_linear and not of_matrices):
        raise CannotFoldError(f"its channels are not those of {path}")
    absorb.absorb_output(layer, *first)
    affine.drop_first_affine(module, of_matrices=of_linear)
    return "norm", (path,)


def _fold_ahead(graph: ModelGraph, node: fx.Node) -> tuple[Any, ...]:
    """Let the layers after do the affine transform that a norm ends with."""
    module = graph.module(node)
    scale, shift = affine.last_affine(module)
    readers = graph.readers(node, scale.numel())
    if not readers.signed and (scale < 0).any():
        raise CannotFoldError("a negative gamma does not pass through the maximum")
    stays = readers.no_shift or _more_biases(readers, scale.numel())
    if stays and affine.is_affine(module):
        raise CannotFoldError(stays)
    rest = _shift_before(scale, shift) if stays else None
    for layer in readers.layers.values():
        absorb.absorb_input(layer, scale, None if stays else shift)
    is_affine, is_known = affine.is_affine(module), graph.dims(node) is not None
    if is_affine:
        affine.drop_first_affine(module)
    else:
        module.fold_affine(rest)
    if not is_known and readers.dims is not None:
        module.register_forward_pre_hook(affine.TakesDims(readers.dims))
    if is_affine:
        return "norm", tuple(readers.layers)
    return "gamma" if stays else "gamma and beta", tuple(readers.layers), stays or ""


def _more_biases(readers: Readers, betas: int) -> str | None:
    """Why beta would cost more parameters than it has, or None."""
    added = sum(absorb.out_channels(m) for m in readers.layers.values() if m.bias is None)
    return f"{added} biases would take the place of {betas} betas" if added > betas else None


def _shift_before(scale: Tensor, shift: Tensor) -> Tensor:
    """The shift that does before ``scale`` what ``shift`` does after it."""
    if (shift[scale == 0] != 0).any():
        raise CannotFoldError("a gamma is 0 where beta is not, and beta has to stay")
    before = torch.where(scale == 0, 0, shift / scale)
    if not (before.abs() <= _LARGEST_SHIFT).all():
        raise CannotFoldError(f"beta has to stay, and beta / gamma is above {_LARGEST_SHIFT:g}")
    return before
