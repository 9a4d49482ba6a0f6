"""EvoNorm in any model: norm-activation layers in place of norms and activations."""

from evonorm_plugins.convert.api import Conversion, convert
from evonorm_plugins.convert.errors import ConvertError
from evonorm_plugins.convert.report import Report

__all__ = ["Conversion", "ConvertError", "Report", "convert"]
