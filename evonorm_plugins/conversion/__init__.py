"""EvoNorm in any model: norm-activation layers in place of norms and activations."""

from evonorm_plugins.conversion.api import Conversion, convert
from evonorm_plugins.conversion.check import activations_after_norm_acts
from evonorm_plugins.conversion.report import Report
from evonorm_plugins.errors import ConvertError

__all__ = ["Conversion", "ConvertError", "Report", "activations_after_norm_acts", "convert"]
