"""Spectral normalization with the power iteration outside the forward pass.

Source: Miyato et al. (arXiv 1802.05957), with one power iteration a step and the epsilon of Brock
et al. (arXiv 1809.11096). Where the iteration is part of the forward pass, as it often is, a second
forward pass changes what the first one needs for its gradient, and accumulating gradients over
several batches differs from one large batch. Here :func:`power_iteration` is called once after each
change of the weights; forward passes only read the vectors.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


class Spectral:
    """Adds to a module with ``weight`` the division of the weight by its largest singular value.

    Buffers ``u`` ``(O,)`` and ``v`` ``(I,)`` estimate the singular vectors of the weight as a
    matrix ``(O, I)``.
    """

    def _init_spectral(self, eps):
        self.spectral_eps = eps
        rows, columns = self.weight.flatten(1).shape
        options = {"device": self.weight.device}
        self.register_buffer("u", F.normalize(torch.randn(rows, **options), dim=0))
        self.register_buffer("v", torch.zeros(columns, **options))
        self.iterate()

    @torch.no_grad()
    def iterate(self):
        """One step of the power iteration."""
        matrix = self.weight.flatten(1).to(self.u.dtype)
        self.v.copy_(F.normalize(matrix.t() @ self.u, dim=0, eps=self.spectral_eps))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=self.spectral_eps))

    @torch.no_grad()
    def sigma(self):
        """The estimated largest singular value, a scalar."""
        return self.u @ (self.weight.flatten(1).to(self.u.dtype) @ self.v)

    def normalized_weight(self):
        return _Normalize.apply(self.weight, self.u, self.v, self.spectral_eps)


class _Normalize(torch.autograd.Function):
    """``W / max(u^T W v, eps)``: few operations, since a model has hundreds of such layers.

    In the dtype of the weight, whatever autocast would take: everything depends on this number.
    """

    @staticmethod
    def forward(ctx, weight, u, v, eps):
        sigma = torch.dot(u, torch.mv(weight.flatten(1), v)).clamp_(min=eps)
        normalized = weight / sigma
        ctx.save_for_backward(normalized, sigma, u, v)
        return normalized

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        normalized, sigma, u, v = ctx.saved_tensors
        # d(W / sigma) = (dW - (W / sigma) u^T dW v) / sigma
        share = torch.dot(grad.flatten(), normalized.flatten())
        dweight = torch.addr(grad.flatten(1), u * share, v, alpha=-1).div_(sigma)
        return dweight.view(grad.shape), None, None, None


class SNConv2d(Spectral, nn.Conv2d):
    """``nn.Conv2d`` with zero padding that keeps the size, spectrally normalized."""

    def __init__(self, in_channels, out_channels, kernel_size, *, bias=True, eps=1e-4):
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )
        self._init_spectral(eps)

    def forward(self, x):
        return self._conv_forward(x, self.normalized_weight(), self.bias)

    def upsampled(self, x):
        """This convolution, 3x3, of ``x`` ``(N, C, H, W)`` enlarged twice: ``(N, O, 2H, 2W)``.

        Nearest-neighbour enlargement and a 3x3 convolution are one transposed convolution of
        stride 2, whose 4x4 kernel is the sum of the 3x3 kernel over the pixels that were equal:
        16 multiplications for each input pixel instead of 36, and no enlarged copy of ``x``.
        """
        w = self.normalized_weight().flip(2, 3).transpose(0, 1)
        w = (
            F.pad(w, (0, 1, 0, 1))
            + F.pad(w, (1, 0, 0, 1))
            + F.pad(w, (0, 1, 1, 0))
            + F.pad(w, (1, 0, 1, 0))
        )
        return F.conv_transpose2d(x, w, self.bias, stride=2, padding=1)


class SNLinear(Spectral, nn.Linear):
    """``nn.Linear``, spectrally normalized."""

    def __init__(self, in_features, out_features, *, bias=True, eps=1e-4):
        super().__init__(in_features, out_features, bias=bias)
        self._init_spectral(eps)

    def forward(self, x):
        return F.linear(x, self.normalized_weight(), self.bias)


class SNEmbedding(Spectral, nn.Embedding):
    """``nn.Embedding``, spectrally normalized."""

    def __init__(self, num_embeddings, embedding_dim, *, eps=1e-4):
        super().__init__(num_embeddings, embedding_dim)
        self._init_spectral(eps)

    def forward(self, index):
        return F.embedding(index, self.normalized_weight())


def spectral_layers(module):
    """``(name, layer)`` of every spectrally normalized layer of ``module``."""
    return [(name, m) for name, m in module.named_modules() if isinstance(m, Spectral)]


def power_iteration(module, steps=1):
    """Refine the singular vectors of every layer; call it whenever weights have changed."""
    for _, layer in spectral_layers(module):
        for _ in range(steps):
            layer.iterate()


@torch.no_grad()
def singular_values(module):
    """Estimated largest singular value of every layer's weight: names and a tensor ``(L,)``."""
    layers = spectral_layers(module)
    return [name for name, _ in layers], torch.stack([layer.sigma() for _, layer in layers])


def init_orthogonal(module):
    """Orthogonal weights and biases of zero for convolutions, linear layers and embeddings."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.orthogonal_(m.weight)
            if getattr(m, "bias", None) is not None:
                nn.init.zeros_(m.bias)
    power_iteration(module)
    return module
