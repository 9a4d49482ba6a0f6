"""torchvision's detectors with any norm-activation layer, trained on sets in COCO's format.

from evonorm_plugins.integrations.torchvision import Options, Run

record = Run(Options(train_json=..., train_images=..., val_json=..., val_images=...)).train()
"""

from evonorm_plugins.errors import CheckpointError, ConfigError
from evonorm_plugins.integrations.torchvision.checkpoint import load_detector
from evonorm_plugins.integrations.torchvision.config import Options, load_options
from evonorm_plugins.integrations.torchvision.models import build_detector, list_detectors
from evonorm_plugins.integrations.torchvision.run import Run

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Options",
    "Run",
    "build_detector",
    "list_detectors",
    "load_detector",
    "load_options",
]
