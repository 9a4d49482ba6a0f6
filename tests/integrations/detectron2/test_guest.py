"""In a process that is somebody else's: no default changes, and all that is wrapped is listed and
put back."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2 import layers as d2_layers

import evonorm_plugins.integrations.detectron2  # noqa: F401
from evonorm_plugins.integrations import patch
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


IN_ONE_PROCESS = """
import inspect, json, sys
import detectron2.checkpoint, detectron2.data, detectron2.engine, detectron2.evaluation
import detectron2.export, detectron2.modeling, detectron2.utils.analysis, detectron2.model_zoo
from detectron2.layers import get_norm as early
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.projects import deeplab, point_rend
from detectron2.utils.registry import Registry
from torch import nn

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

def changes():
    after = snapshot()
    keys = before.keys() | after.keys()
    return sorted(str(key) for key in keys if before.get(key) is not after.get(key))

def held(*args, function=early, **options):
    return function(*args, **options)

def said(function):
    try:
        return type(function()).__name__
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def build():
    return said(lambda: BasicBlock(8, 8, norm="EvoNormS0"))

before, loaded = snapshot(), set(sys.modules)
import evonorm_plugins.integrations.detectron2 as plugin
from evonorm_plugins.integrations import patch

class Head(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 1), held("EvoNormS0", 8), nn.ReLU())

result = {
    "detectron2 loaded": [k for k in set(sys.modules) - loaded if k.split(".")[0] == "detectron2"],
    "changes": [changes()], "wrapped": [patch.replaced("detectron2")], "builds": [build()],
    "stock": [type(held("BN", 8)).__name__, held("", 8), held(norm=None, out_channels=8)],
    "early": [said(Head), [type(layer).__name__ for layer in plugin.adapt(Head)()]],
}
# Twice each: the second time changes nothing.
for step in (*[plugin.unregister] * 2, *[plugin.register] * 2, plugin.unregister):
    step()
    result["changes"].append(changes())
    result["wrapped"].append(patch.replaced("detectron2"))
    result["builds"].append(build())
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def process():
    return json.loads(python(IN_ONE_PROCESS))


def test_all_that_the_import_changes_is_put_back(process):
    for name in ("changes", "wrapped"):
        first, *later = process[name]
        assert len(first) > 20
        assert later == [[], [], first, first, []]
    ours, stock = "NormActBasicBlock", "KeyError: 'EvoNormS0'"
    assert process["builds"] == [ours, stock, stock, ours, ours, stock]
    assert process["detectron2 loaded"] == []


def test_a_function_that_was_taken_before_the_import_knows_the_names(process):
    refused, adapted = process["early"]
    assert "Head cannot take NORM 'EvoNormS0': nothing tells what follows its norms" in refused
    assert adapted == ["Conv2d", "EvoNormS0", "Identity"]
    assert process["stock"] == ["BatchNorm2d", None, None]


def test_the_documentation_lists_what_is_wrapped():
    text = (ROOT / "docs/detection.md").read_text()
    section = text.partition("### What the import wraps")[2].partition("\n## ")[0]
    named = set(re.findall(r"`((?:detectron2|fvcore|sys)\.[\w.]+)`", section))
    # Classes of projects are wrapped where a test has imported them.
    projects = ("detectron2.projects.", "tridentnet.", "densepose.", "tests.")
    assert named == {name for name in patch.replaced("detectron2") if not name.startswith(projects)}


def test_an_unknown_norm_is_the_error_that_detectron2_raises():
    for kind in (KeyError, ValueError):
        with pytest.raises(kind, match=r"^unknown NORM 'Nothing'; Detectron2 has BN, "):
            d2_layers.get_norm("Nothing", 8)


def test_a_replacement_of_somebody_else_is_left_alone():
    class Theirs:
        def method(self):
            return 1

    with patch.recorded("detectron2"):
        patch.wrap_method(Theirs, "method")(lambda original, self: original(self) + 1)
    ours = Theirs.method
    Theirs.method = lambda self: 10 * ours(self)
    patch._undo["detectron2"].pop()[1]()
    assert Theirs().method() == 20
