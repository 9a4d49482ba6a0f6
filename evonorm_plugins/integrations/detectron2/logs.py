"""The norms of every part of a model are logged when Detectron2 builds it."""

import functools
import logging

from detectron2.config import CfgNode
from detectron2.modeling import build_model as _stock_build_model
from torch import nn

from evonorm_plugins.integrations.detectron2.patch import rebind
from evonorm_plugins.integrations.model_norms import census

# Detectron2's logger prints its children's messages.
logger = logging.getLogger("detectron2.evonorm_plugins")


@functools.wraps(_stock_build_model)
def build_model(cfg: CfgNode) -> nn.Module:
    model = _stock_build_model(cfg)
    logger.info("Norms of the model by part:\n%s", census(model) or "none")
    return model


def register() -> None:
    rebind(_stock_build_model, build_model)
