"""Classes of Detectron2's projects, adapted as soon as their modules are imported.

The projects are packages of their own, two of them part of Detectron2's wheel, and none is imported
by Detectron2 itself.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from evonorm_plugins.integrations import patch
from evonorm_plugins.integrations.detectron2.norms import adapt

# Module -> classes that give norm and activation to Detectron2's convolutions.
_IN_ORDER = {
    "detectron2.projects.deeplab.semantic_seg": ("DeepLabV3PlusHead",),
    "detectron2.projects.panoptic_deeplab.panoptic_seg": (
        *("PanopticDeepLabSemSegHead", "PanopticDeepLabInsEmbedHead"),
    ),
    "densepose.modeling.roi_heads.roi_head": ("Decoder",),
}
# Module -> module of this package that has its blocks without superfluous ReLUs.
_BLOCKS = {
    "detectron2.projects.deeplab.resnet": f"{__name__}.deeplab",
    "tridentnet.trident_backbone": f"{__name__}.tridentnet",
}


class _Finder(MetaPathFinder):
    """Finds what the other finders find, and adapts it once it has been imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name not in _IN_ORDER and name not in _BLOCKS:
            return None
        others = (f for f in sys.meta_path if f is not self)
        found = (f.find_spec(name, path, target) for f in others)
        spec = next((s for s in found if s is not None), None)
        if spec is not None and spec.loader is not None:
            _adapt_when_executed(spec)
        return spec


def _adapt_when_executed(spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    execute = loader.exec_module

    def execute_and_adapt(module: ModuleType) -> None:
        execute(module)
        with patch.recorded("detectron2"):
            _adapt(module)

    loader.exec_module = execute_and_adapt


def _adapt(module: ModuleType) -> None:
    for name in _IN_ORDER.get(module.__name__, ()):
        adapt(getattr(module, name))
    if module.__name__ in _BLOCKS:
        importlib.import_module(_BLOCKS[module.__name__]).register()


def register() -> None:
    """Adapt the projects that are imported, and those that will be."""
    for name in (*_IN_ORDER, *_BLOCKS):
        if name in sys.modules:
            _adapt(sys.modules[name])
    patch.find_first(_Finder())
