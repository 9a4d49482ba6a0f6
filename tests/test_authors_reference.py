"""The layers against outputs, gradients and moving variances of the authors' TensorFlow code.

``references/evonorm_tf_reference.npz`` holds ``case/array`` in float64: input ``x``, parameters,
output ``y``, incoming gradient ``dy``, gradients, and for B0 the moving variance before and after.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from evonorm_plugins import get_norm_act

REFERENCE = np.load(Path(__file__).parent / "references" / "evonorm_tf_reference.npz")
CASES = sorted({key.partition("/")[0] for key in REFERENCE.files})
GROUPS = {"s0_c32_g8": 8, "s0_1x1": 8, "s0_shifted": 16}
# The authors compute the variance over the batch in float32, everything else in float64; so does
# the plain formula in float64, the fused kernels run in float32.
TOLERANCE = {
    torch.float64: {"s0": 1e-9, "b0": 1e-6},
    torch.float32: {"s0": 3e-6, "b0": 3e-6},
}


def arrays(case):
    prefix = case + "/"
    return {k.removeprefix(prefix): REFERENCE[k] for k in REFERENCE.files if k.startswith(prefix)}


def assert_close(actual, expected, tolerance, what):
    scale = np.abs(expected).max()
    error = np.abs(actual.detach().cpu().numpy() - expected).max()
    assert error <= tolerance * scale, f"{what}: off by {error / scale:.1e} of its largest value"


def build(case, data, dtype):
    series = case[:2]
    options = {"apply_act": not case.endswith("_affine")}
    if series == "s0":
        options["groups"] = GROUPS.get(case, 32)
    layer = get_norm_act(f"EvoNorm{series}", len(data["gamma"]), dtype=dtype, **options)
    state = {"weight": data["gamma"], "bias": data["beta"]}
    if options["apply_act"]:
        state["v"] = data["v"]
    if series == "b0":
        state["running_var"] = data.get("moving_variance", np.ones(len(data["gamma"])))
    layer.load_state_dict({k: torch.from_numpy(a) for k, a in state.items()}, strict=True)
    return layer.train(not case.endswith("_eval"))


def test_all_cases_are_there():
    assert len(CASES) == 11


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case, dtype):
    data = arrays(case)
    layer = build(case, data, dtype)
    tolerance = TOLERANCE[dtype][case[:2]]
    x = torch.from_numpy(data["x"]).to(dtype).requires_grad_()

    y = layer(x)
    y.backward(torch.from_numpy(data["dy"]).to(dtype))

    assert_close(y, data["y"], tolerance, "y")
    assert_close(x.grad, data["dx"], tolerance, "dx")
    assert_close(layer.weight.grad, data["dgamma"], tolerance, "dgamma")
    assert_close(layer.bias.grad, data["dbeta"], tolerance, "dbeta")
    assert (layer.v is None) == ("dv" not in data)
    if layer.v is not None:
        assert_close(layer.v.grad, data["dv"], tolerance, "dv")
    if "moving_variance_after" in data:
        assert_close(layer.running_var, data["moving_variance_after"], tolerance, "running_var")
    elif "moving_variance" in data:
        assert_close(layer.running_var, data["moving_variance"], 1e-7, "running_var")
