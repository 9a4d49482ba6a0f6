"""The table of errors of fused models."""

import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/experiments/timm_table.py"))


def test_errors(capsys):
    assert TOOL["main"](["test_efficientnet_evos", "--size", "32"]) == 0
    header, _, line = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == header.count("|") - 1
    assert cells[:3] == ["`test_efficientnet_evos`", "13 EvoNorm2dS0", "0"]
    assert all(0 < float(error) < 1e-4 for error in cells[3:])


def test_a_model_that_is_further_off_is_named(monkeypatch, capsys):
    fuse = TOOL["fuse"]

    def nearly(model):
        with torch.no_grad():
            model.classifier.bias.add_(0.1)
        return fuse(model)

    monkeypatch.setitem(TOOL["compare"].__globals__, "fuse", nearly)
    assert TOOL["main"](["test_efficientnet_evos", "--size", "32"]) == 1
    assert "error: test_efficientnet_evos: output off by" in capsys.readouterr().err


def test_unknown_model(capsys):
    assert TOOL["main"](["resnet0_evos"]) == 2
    assert capsys.readouterr().err == "error: timm has no model 'resnet0_evos'\n"
