"""EvoNorm in any model: norm-activation layers in place of norms and activations."""

from evonorm_plugins.convert.api import Conversion, convert
from evonorm_plugins.convert.check import activations_after_norm_acts
from evonorm_plugins.convert.errors import ConvertError
from evonorm_plugins.convert.report import Report

__all__ = ["Conversion", "ConvertError", "Report", "activations_after_norm_acts", "convert"]
