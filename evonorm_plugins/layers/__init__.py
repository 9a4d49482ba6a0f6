"""Norm-activation layers as modules."""

from evonorm_plugins.layers.base import NormAct
from evonorm_plugins.layers.baselines import (
    FRN,
    BNPReLU,
    BNReLU,
    BNSwish,
    BNSwish1,
    GNReLU,
    GNSwish,
    GNSwish1,
    LNReLU,
    PixelNormReLU,
    RandomLayer,
    RandomRejLayer,
    RSRejLayer,
)
from evonorm_plugins.layers.batch import (
    BatchDependent,
    BatchStatistics,
    EvoNormB0,
    EvoNormB1,
    EvoNormB2,
    SyncEvoNormB0,
    SyncEvoNormB1,
    SyncEvoNormB2,
    convert_sync_evonorm,
    moving_statistics_of,
)
from evonorm_plugins.layers.conditional import ConditionalNormAct
from evonorm_plugins.layers.cross_replica import (
    CrossReplicaBatchNorm2d,
    SyncRSRejLayer,
    convert_cross_replica,
)
from evonorm_plugins.layers.sample import EvoNormS0, EvoNormS1, EvoNormS2

__all__ = [
    "FRN",
    "BNPReLU",
    "BNReLU",
    "BNSwish",
    "BNSwish1",
    "BatchDependent",
    "BatchStatistics",
    "ConditionalNormAct",
    "CrossReplicaBatchNorm2d",
    "EvoNormB0",
    "EvoNormB1",
    "EvoNormB2",
    "EvoNormS0",
    "EvoNormS1",
    "EvoNormS2",
    "GNReLU",
    "GNSwish",
    "GNSwish1",
    "LNReLU",
    "NormAct",
    "PixelNormReLU",
    "RSRejLayer",
    "RandomLayer",
    "RandomRejLayer",
    "SyncEvoNormB0",
    "SyncEvoNormB1",
    "SyncEvoNormB2",
    "SyncRSRejLayer",
    "convert_cross_replica",
    "convert_sync_evonorm",
    "moving_statistics_of",
]
