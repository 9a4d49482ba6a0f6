"""DeepLab's stem without its ReLUs."""

import torch
import torch.nn.functional as F
from detectron2.projects.deeplab.resnet import DeepLabStem

from evonorm_plugins.integrations.detectron2.norms import adapt_block


class NormActDeepLabStem(DeepLabStem):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv3(self.conv2(self.conv1(x)))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


def register() -> None:
    adapt_block(DeepLabStem, NormActDeepLabStem, ("conv1", "conv2", "conv3"))
