"""Detectron2's ResNet blocks without the ReLUs that a norm-activation layer has made superfluous.

Detectron2 writes those ReLUs into ``forward``. Each class here is its parent but for that method.
The ReLU after the residual addition stays: no norm precedes it.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
)
from torch import nn


class NormActBasicStem(BasicStem):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class _Residual:
    if TYPE_CHECKING:  # TorchScript would take these for attributes and methods to compile
        shortcut: nn.Module | None

        def _branch(self, x: torch.Tensor) -> torch.Tensor: ...

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self._branch(x)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class NormActBasicBlock(_Residual, BasicBlock):
    def _branch(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x))


class NormActBottleneckBlock(_Residual, BottleneckBlock):
    def _branch(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


class NormActDeformBottleneckBlock(_Residual, DeformBottleneckBlock):
    def _branch(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        offset = self.conv2_offset(x)
        if self.deform_modulated:
            # The first two thirds are offsets, the last one the modulation.
            offset_x, offset_y, mask = offset.chunk(3, dim=1)
            x = self.conv2(x, torch.cat((offset_x, offset_y), dim=1), mask.sigmoid())
        else:
            x = self.conv2(x, offset)
        return self.conv3(x)


# Detectron2's class -> (the one above, the convolutions whose norm an activation follows)
NORM_ACT_BLOCKS: dict[type[nn.Module], tuple[type[nn.Module], tuple[str, ...]]] = {
    BasicStem: (NormActBasicStem, ("conv1",)),
    BasicBlock: (NormActBasicBlock, ("conv1",)),
    BottleneckBlock: (NormActBottleneckBlock, ("conv1", "conv2")),
    DeformBottleneckBlock: (NormActDeformBottleneckBlock, ("conv1", "conv2")),
}
