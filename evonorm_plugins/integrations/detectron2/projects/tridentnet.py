"""TridentNet's block without the ReLUs that a norm-activation layer has made superfluous."""

import torch
import torch.nn.functional as F
from tridentnet.trident_backbone import TridentBottleneckBlock

from evonorm_plugins.integrations.detectron2.norms import adapt_block


class NormActTridentBottleneckBlock(TridentBottleneckBlock):
    """Its convolutions are shared by the branches, and so are the norms, as in the original."""

    def forward(self, x: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """One tensor, or one for each branch; to a list, or with ``concat_output`` to one."""
        every = self.training or self.test_branch_idx == -1
        branches = x if isinstance(x, list) else [x] * (self.num_branch if every else 1)
        outputs = []
        for y, source in zip(self.conv2([self.conv1(b) for b in branches]), branches, strict=True):
            y = self.conv3(y)
            y += source if self.shortcut is None else self.shortcut(source)
            outputs.append(F.relu_(y))
        return torch.cat(outputs) if self.concat_output else outputs


def register() -> None:
    adapt_block(TridentBottleneckBlock, NormActTridentBottleneckBlock, ("conv1", "conv2"))
