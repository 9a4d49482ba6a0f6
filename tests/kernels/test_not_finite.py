"""The CPU kernels give NaN and infinities where plain torch does."""

import pytest
import torch

from evonorm_plugins import kernels

pytestmark = pytest.mark.skipif(
    kernels.cpu.missing() is not None, reason=f"no CPU kernels: {kernels.cpu.missing()}"
)

OF_BATCH = ["b0", "b1", "b2", "rs_rej", "bn", "bn_relu", "bn_swish", "bn_tlu"]
GROUPS = ["gn", "gn_relu", "gn_silu", "gn_swish", "over_std", "frn"]
PLAIN = ["s0", "s1", "s2", *GROUPS, "affine"]
# With the variance of the batch, which is given or that of x.
PLACES = [
    *((k, a, False) for k in PLAIN for a in ["x", "dy", "weight", "bias"]),
    *((k, a, given) for k in OF_BATCH for a in ["x", "dy", "weight", "bias"] for given in (0, 1)),
    *((k, "batch_var", True) for k in OF_BATCH),
    *((k, "v", False) for k in ("s0", "b0", "gn_swish", "frn", "bn_swish", "bn_tlu")),
    ("b0", "v", True),
]


# There torch's x scale + shift is inf - inf, while 0 is the larger of 0 and -inf.
PLACES.remove(("gn_relu", "weight", False))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize(("kind", "place", "given"), PLACES)
def test_nan_where_torch_has_it(
    kind, place, given, value, layout, draw, differentiate, differentiate_all
):
    """In one element; by every instruction set of this processor."""
    arguments, dy = draw((3, 8, 6, 7), batch_var=given)
    (dy if place == "dy" else arguments[place]).view(-1)[11 if place in ("x", "dy") else 3] = value
    arguments["x"] = arguments["x"].contiguous(memory_format=layout)
    plain = differentiate(kind, arguments, dy, "torch")
    for name, fused in differentiate_all(kind, arguments, dy, "cpu").items():
        for key, expected in plain.items():
            # What infinite parameters give may be infinite here and NaN there; so may the
            # gradient of gamma in these norms, a difference of two sums in torch, and what
            # a sigmoid of infinity multiplies, which elsewhere is NaN before.
            exact = (
                place == "x" or (place == "dy" and kind[:2] not in ("gn", "bn")) or value != value
            )
            exact = exact and not (kind == "bn_swish" and given and value == value)
            assert torch.equal(fused[key].isfinite(), expected.isfinite()), (name, key)
            assert not exact or torch.equal(fused[key].isnan(), expected.isnan()), (name, key)
            close = expected.isfinite() & fused[key].isfinite()
            torch.testing.assert_close(fused[key][close], expected[close], rtol=1e-4, atol=1e-4)
