"""What is asked of tensors before a launch: the same answers in C and in Python."""

import pytest
import torch

from evonorm_plugins.kernels import library, sizes
from evonorm_plugins.kernels.library import Unfit

pytestmark = pytest.mark.skipif(
    isinstance(library.library, str) or library.DLPACK is None,
    reason="the library, or torch's table of functions, is not there",
)
N, C = 2, 8
X = torch.randn(N, C, 3, 5)
LAST = X.to(memory_format=torch.channels_last)
ONE, EACH = torch.ones(C), torch.ones(N, C)
STATISTICS = torch.ones(2, N, 4)
VALID = {
    "forward": ("xgbc", X, ONE, ONE, ONE, "option"),
    "without v": ("xgbc", X, ONE, ONE, None),
    "channels last": ("dxg", LAST, LAST, ONE),
    "of each sample": ("xgb", X.bfloat16(), EACH, EACH),
    "of groups": ("dxgcs", X.half(), X.half(), ONE, ONE, STATISTICS),
    "of one pixel": ("xgb", X[..., :1, :1].contiguous(), ONE, ONE),
    "of the batch": ("dxgcoocca", X, X, ONE, None, EACH, EACH, ONE, ONE, torch.ones(())),
    "averages": ("cc", ONE, ONE),
}
UNFIT = {
    "x None": ("xg", None, ONE),
    "x float64": ("xg", X.double(), ONE),
    "x empty": ("xg", X[:0], ONE),
    "x with a gap": ("xg", X[..., 1:], ONE),
    "x of 3 axes": ("xg", X[0], ONE),
    "x negated": ("xg", torch._neg_view(X), ONE),
    "x sparse": ("xg", X.to_sparse(), ONE),
    "dy None": ("dx", None, X),
    "dy of another format": ("dx", LAST, X),
    "dy of another dtype": ("dx", X.bfloat16(), X),
    "dy of other sizes": ("dx", X[..., :3].contiguous(), X),
    "gamma None": ("xg", X, None),
    "gamma short": ("xg", X, ONE[1:]),
    "gamma half": ("xg", X, ONE.half()),
    "gamma with gaps": ("xg", X, torch.ones(2 * C)[::2]),
    "beta unlike gamma": ("xgb", X, ONE, EACH),
    "v of each sample": ("xgc", X, ONE, EACH),
    "v on another device": ("xgc", X, ONE, ONE.to("meta")),
    "mean without rstd": ("xs", X, STATISTICS[:1]),
    "statistics of one sample": ("xs", X, STATISTICS[:, :1].contiguous()),
    "statistics of channels": ("xo", X, ONE),
    "averages unlike": ("cc", ONE, ONE[1:]),
}


@pytest.mark.parametrize("words", VALID)
def test_both_find_the_same(words):
    found = library.library.sizes(*VALID[words])
    assert found == sizes.read_sizes_in_python(*VALID[words])
    assert hash(found) == hash(sizes.Sizes(*found))


def test_found():
    found = sizes.Sizes(*sizes.read_sizes("dxgcoocca", *VALID["of the batch"][1:]))
    assert found == (-1, N, C, 15, 0, 0, 0, 0, 1 << 3)
    found = sizes.Sizes(*sizes.read_sizes("xgb", X.bfloat16(), EACH, EACH))
    assert (found.dtype, found.per_sample, found.channels_last) == (1, 1, 0)


@pytest.mark.parametrize("words", UNFIT)
@pytest.mark.parametrize("read", ["C", "Python"])
def test_both_refuse(read, words):
    read_sizes = library.library.sizes if read == "C" else sizes.read_sizes_in_python
    with pytest.raises(Unfit):
        read_sizes(*UNFIT[words])


def test_both_find_the_same_addresses():
    tensors = (X, None, ONE[1:], ONE, X.half()[..., 1:])
    found = library.library.addresses(tensors)
    assert found == sizes.read_addresses_in_python(tensors)
    assert found[0] == 0b10110
    assert found[1][3] == ONE.data_ptr()
