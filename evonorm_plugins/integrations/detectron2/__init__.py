"""EvoNorms in Detectron2: importing this makes every registered norm-activation a ``NORM``.

    import evonorm_plugins.integrations.detectron2

    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "EvoNormS0"

The stock builders, configs, optimizers, ``FREEZE_AT``, ``TEST.PRECISE_BN``, ``FlopCountAnalysis``
and checkpointers then know these layers. Models without them are built as before.
"""

from evonorm_plugins.integrations.quiet import libraries_silenced

with libraries_silenced():
    import detectron2.modeling  # noqa: F401

from evonorm_plugins.errors import CheckpointError, NonFiniteError
from evonorm_plugins.integrations.detectron2 import (
    checkpoint,
    flops,
    keys,
    logs,
    norms,
    precise_stats,
    solver,
)
from evonorm_plugins.integrations.detectron2.blocks import (
    NormActBasicBlock,
    NormActBasicStem,
    NormActBottleneckBlock,
    NormActDeformBottleneckBlock,
)
from evonorm_plugins.integrations.detectron2.flops import norm_act_flop_handles
from evonorm_plugins.integrations.detectron2.norms import adapt
from evonorm_plugins.integrations.model_norms import census, norms_of

for _part in (keys, norms, solver, precise_stats, flops, logs, checkpoint):
    _part.register()

# Its classes enter Detectron2's registries, which need the names registered above.
from evonorm_plugins.integrations.detectron2 import paper  # noqa: E402

__all__ = [
    "CheckpointError",
    "NonFiniteError",
    "NormActBasicBlock",
    "NormActBasicStem",
    "NormActBottleneckBlock",
    "NormActDeformBottleneckBlock",
    "adapt",
    "census",
    "norm_act_flop_handles",
    "norms_of",
    "paper",
]
