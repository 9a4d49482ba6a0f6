"""In a process that is somebody else's: no default changes, and all that is wrapped is listed and
put back."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2 import layers as d2_layers

from evonorm_plugins.integrations.detectron2 import patch
from tests.integrations.detectron2.conftest import CONFIGS

ROOT = Path(__file__).parents[3]
PAPER = CONFIGS / "paper/mask_rcnn_R_50_FPN_EvoNormS0.yaml"


def python(code, *arguments):
    """What a fresh process prints, which runs ``code``."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_no_default_changes_and_configs_are_read_without_the_import(tmp_path):
    """Neither those of models without the layers, nor those of models with them."""
    out = python(
        """
import sys
from detectron2.config import get_cfg
early, before = get_cfg(), get_cfg().dump()
import evonorm_plugins.integrations.detectron2
assert get_cfg().dump() == before
early.merge_from_file(sys.argv[1])
for name in ("stock", "evonorm"):
    cfg = get_cfg()
    if name == "evonorm":
        cfg.merge_from_file(sys.argv[1])
    open(f"{sys.argv[2]}/{name}.yaml", "w").write(cfg.dump())
early.MODEL.DEVICE = "meta"
import torch
with torch.device("meta"):
    model = evonorm_plugins.integrations.detectron2.detectron2.modeling.build_model(early)
print(type(model.proposal_generator.rpn_head.norm_acts[0]).__name__)
""",
        *(PAPER, tmp_path),
    )
    assert out == "EvoNormS0"
    out = python(
        """
import sys
sys.modules["evonorm_plugins"] = None  # as if it were not installed
from detectron2.config import get_cfg
for path in sys.argv[1:]:
    cfg = get_cfg()
    cfg.merge_from_file(path)
    print(cfg.MODEL.FPN.NORM)
""",
        *(tmp_path / "stock.yaml", tmp_path / "evonorm.yaml"),
    )
    assert out == "EvoNormS0"


SNAPSHOT = """
import inspect, sys
import detectron2.checkpoint, detectron2.data, detectron2.engine, detectron2.evaluation
import detectron2.export, detectron2.modeling, detectron2.utils.analysis, detectron2.model_zoo
from detectron2.config import get_cfg
from detectron2.projects import deeplab, point_rend
from detectron2.utils.registry import Registry

def snapshot():
    "Everything that the modules hold, and that their classes, functions and registries hold."
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in ("detectron2", "fvcore"):
            continue
        for key, value in vars(module).items():
            if key == "__builtins__":
                continue
            found[name, key] = value
            while inspect.isfunction(value):
                parts = ("__code__", "__defaults__", "__kwdefaults__", "__closure__")
                found.update({(name, key, value, p): getattr(value, p) for p in parts})
                found.update({(name, key, value, k): v for k, v in vars(value).items()})
                value = vars(value).get("__wrapped__")
            if inspect.isclass(value):
                found.update({(name, key, k): v for k, v in vars(value).items()})
            if isinstance(value, Registry):
                found.update({(name, key, k): v for k, v in value})
    return found

def differences(before, after):
    return [k for k in before.keys() | after.keys() if before.get(k) is not after.get(k)]

before = snapshot()
loaded = set(sys.modules)
"""


def test_what_the_import_wraps_is_listed_and_put_back():
    out = python(
        SNAPSHOT
        + """
import evonorm_plugins.integrations.detectron2 as plugin
from evonorm_plugins.integrations.detectron2 import patch
assert {name for name in set(sys.modules) - loaded if name.split(".")[0] == "detectron2"} == set()
changed, names = differences(before, snapshot()), patch.replaced()
assert changed and names
plugin.register()
assert patch.replaced() == names
plugin.unregister()
assert differences(before, snapshot()) == []
assert patch.replaced() == []
plugin.unregister()
plugin.register()
assert sorted(map(str, differences(before, snapshot()))) == sorted(map(str, changed))
from detectron2.modeling.backbone.resnet import BasicBlock
print(type(BasicBlock(8, 8, norm="EvoNormS0")).__name__)
plugin.unregister()
try:
    BasicBlock(8, 8, norm="EvoNormS0")
except KeyError as error:
    print(error)
"""
    )
    assert out.split() == ["NormActBasicBlock", "'EvoNormS0'"]


def test_the_documentation_lists_what_is_wrapped():
    text = (ROOT / "docs/detection.md").read_text()
    section = text.partition("### What the import wraps")[2].partition("\n## ")[0]
    named = set(re.findall(r"`((?:detectron2|fvcore)\.[\w.]+)`", section))
    assert named == set(patch.replaced())


def test_a_function_that_was_taken_before_the_import_knows_the_names():
    out = python(
        """
from detectron2.layers import get_norm as early
def hold(function=early):
    return lambda *args, **options: function(*args, **options)
held = hold()
import evonorm_plugins.integrations.detectron2 as plugin
from torch import nn
@plugin.adapt
class Head(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 1), held("EvoNormS0", 8), nn.ReLU())
print([type(layer).__name__ for layer in Head()])
print(type(held("BN", 8)).__name__, held("", 8), held(norm=None, out_channels=8))
try:
    held("EvoNormS0", 8)
except ValueError as error:
    print(error)
"""
    )
    lines = out.splitlines()
    assert lines[0] == "['Conv2d', 'EvoNormS0', 'Identity']"
    assert lines[1] == "BatchNorm2d None None"
    assert "the class that asks for it is not one whose activations are known" in lines[2]


def test_an_unknown_norm_is_the_error_that_detectron2_raises():
    for kind in (KeyError, ValueError):
        with pytest.raises(kind, match=r"^unknown NORM 'Nothing'; Detectron2 has BN, "):
            d2_layers.get_norm("Nothing", 8)


def test_a_replacement_of_somebody_else_is_left_alone():
    class Theirs:
        def method(self):
            return 1

    with patch.recorded():
        patch.wrap_method(Theirs, "method")(lambda original, self: original(self) + 1)
    ours = Theirs.method
    Theirs.method = lambda self: 10 * ours(self)
    patch._undo.pop()[1]()
    assert Theirs().method() == 20
