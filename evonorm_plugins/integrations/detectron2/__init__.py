"""EvoNorms in Detectron2: importing this makes every registered norm-activation a ``NORM``.

    import evonorm_plugins.integrations.detectron2

    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "EvoNormS0"

The stock builders, configs, optimizers, ``FREEZE_AT``, ``TEST.PRECISE_BN``, ``FlopCountAnalysis``
and checkpointers then know these layers. Models without them are built, trained, saved and loaded
as before, and no default changes. :func:`unregister` takes all of it back.
"""

from evonorm_plugins.integrations.quiet import libraries_silenced

with libraries_silenced():
    import detectron2.modeling  # noqa: F401

from evonorm_plugins.errors import CheckpointError, NonFiniteError
from evonorm_plugins.integrations import patch
from evonorm_plugins.integrations.detectron2 import (
    checkpoint,
    flops,
    norms,
    paper,
    precise_stats,
    projects,
    solver,
)
from evonorm_plugins.integrations.detectron2.blocks import (
    NormActBasicBlock,
    NormActBasicStem,
    NormActBottleneckBlock,
    NormActDeformBottleneckBlock,
)
from evonorm_plugins.integrations.detectron2.checkpoint import dropping_norms
from evonorm_plugins.integrations.detectron2.flops import norm_act_flop_handles
from evonorm_plugins.integrations.detectron2.keys import add_evonorm_config
from evonorm_plugins.integrations.detectron2.norms import adapt
from evonorm_plugins.integrations.detectron2.verify import Verification, verify
from evonorm_plugins.integrations.detectron2.weights import SafeCheckpointer
from evonorm_plugins.integrations.model_norms import census, norms_of


def register() -> None:
    """Make Detectron2 know the layers, as importing this package does; once is enough."""
    if patch.replaced("detectron2"):
        return
    with patch.recorded("detectron2"):
        for part in (norms, solver, precise_stats, flops, checkpoint, paper, projects):
            part.register()


def unregister() -> None:
    """Take back whatever :func:`register` has changed in Detectron2 and fvcore.

    Models that are built go on working. :func:`register` makes Detectron2 know the layers again.
    """
    if patch.replaced("detectron2"):
        patch.undo("detectron2")
        paper.unregister()


register()

__all__ = [
    "CheckpointError",
    "NonFiniteError",
    "NormActBasicBlock",
    "NormActBasicStem",
    "NormActBottleneckBlock",
    "NormActDeformBottleneckBlock",
    "SafeCheckpointer",
    "Verification",
    "adapt",
    "add_evonorm_config",
    "census",
    "dropping_norms",
    "norm_act_flop_handles",
    "norms_of",
    "paper",
    "register",
    "unregister",
    "verify",
]
