"""DINOv2's vision transformers (Oquab et al., arXiv 2304.07193), without registers.

Written here because the only other way to the features is to run code from the authors' repository,
which torch.hub downloads. The state dict is that of their ``dinov2_vit*14_pretrain.pth``.
"""

import torch
import torch.nn.functional as F
from torch import nn

_PATCH = 14  # pixels
_GRID = 37  # patches along a side of the 518-pixel images that positions were learnt at
# Width and number of blocks; a head has 64 channels.
SIZES = {
    "dinov2_vits14": (384, 12),
    "dinov2_vitb14": (768, 12),
    "dinov2_vitl14": (1024, 24),
    "dinov2_vitg14": (1536, 40),
}


class DinoV2(nn.Module):
    """Normalised images (B, 3, H, W) to the class token after the last norm, (B, width).

    Args:
        name: one of :data:`SIZES`. H and W are multiples of 14.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        width, depth = SIZES[name]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + _GRID**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of training; the files hold it
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, _PATCH, _PATCH)})
        gated = name == "dinov2_vitg14"
        self.blocks = nn.ModuleList(_Block(width, gated) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed["proj"](images)
        positions = self._positions(*patches.shape[2:])
        tokens = torch.cat(
            [self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], 1
        )
        tokens = tokens + positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        """(1, 1 + rows * columns, width), interpolated from the grid of training."""
        if rows == columns == _GRID:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (_GRID, _GRID)).permute(0, 3, 1, 2)
        # The 0.1 moves where the grid is read, and belongs to the weights: the authors' features
        # have it.
        scale = ((rows + 0.1) / _GRID, (columns + 0.1) / _GRID)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)


class _Block(nn.Module):
    def __init__(self, width: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = _Attention(width)
        self.mlp = _Gated(width) if gated else _Mlp(width)
        self.ls1, self.ls2 = _Scale(width), _Scale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (B, tokens, 3 * width) -> q, k, v, each (B, heads, tokens, 64)
        q, k, v = self.qkv(x).unflatten(2, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Gated(nn.Module):
    """SwiGLU, with the hidden width that gives it about as many weights as the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = (4 * width * 2 // 3 + 7) // 8 * 8
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma
