"""Statistics that are kept: our own, pytorch-fid's, torch-fidelity's."""

import json
import os
import stat

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import compute_statistics_of_path

from evonorm_plugins.errors import InputError, ProtocolError
from evonorm_plugins.metrics.statistics_file import (
    Statistics,
    check_same_extractor,
    is_statistics,
    load_statistics,
    save_statistics,
)

X = np.random.default_rng(0).normal(size=(30, 6))
MEAN, COVARIANCE = X.mean(0), np.cov(X, rowvar=False)
WITH_NAN = np.where(np.arange(180).reshape(30, 6) == 44, np.nan, X)


def equal(statistics):
    np.testing.assert_allclose(statistics.mean, MEAN, rtol=1e-7)
    np.testing.assert_allclose(statistics.covariance, COVARIANCE, rtol=1e-6, atol=1e-7)


def test_ours_come_back_and_pytorch_fid_reads_them(tmp_path):
    path = tmp_path / "deep/x.npz"
    protocol = {"extractor": "e", "backend": "torch-fidelity"}
    save_statistics(path, Statistics(MEAN, COVARIANCE, 30, protocol, X.astype(np.float32)))
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]
    loaded = load_statistics(path)
    assert loaded.n == 30
    assert loaded.protocol == protocol
    np.testing.assert_array_equal(loaded.mean, MEAN)
    np.testing.assert_array_equal(loaded.covariance, COVARIANCE)
    np.testing.assert_array_equal(loaded.features, X.astype(np.float32))
    theirs = compute_statistics_of_path(str(path), None, 1, 6, "cpu")
    np.testing.assert_array_equal(theirs[0], MEAN)
    assert is_statistics(path)


def test_others_may_read_them(tmp_path):
    mask = os.umask(0o022)
    try:
        save_statistics(tmp_path / "x.npz", Statistics(MEAN, COVARIANCE, 30, {}))
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x.npz").stat().st_mode) == 0o644


def test_pytorch_fids(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", mu=MEAN, sigma=COVARIANCE)
    loaded = load_statistics(tmp_path / "x.npz")
    equal(loaded)
    assert (loaded.n, loaded.protocol, loaded.features) == (None, None, None)


def test_torch_fidelitys_cache(tmp_path):
    torch.save({"mu": MEAN.astype(np.float32), "sigma": COVARIANCE}, tmp_path / "stat.pt")
    equal(load_statistics(tmp_path / "stat.pt"))
    torch.save(torch.from_numpy(X).float(), tmp_path / "features.pt")
    loaded = load_statistics(tmp_path / "features.pt")
    equal(loaded)
    assert loaded.n == 30
    assert loaded.features.shape == (30, 6)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_strangers_pickles_are_not_executed(tmp_path, capsys):
    torch.save({"mu": Evil(), "sigma": 1}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt holds no statistics"):
        load_statistics(tmp_path / "x.pt")
    np.savez(tmp_path / "x.npz", mu=np.array([Evil()], object), sigma=COVARIANCE)
    with pytest.raises(InputError, match=r"x\.npz holds no statistics"):
        load_statistics(tmp_path / "x.npz")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mu": MEAN, "sigma": COVARIANCE[:3]}, r"\(6,\) and \(3, 6\)"),
        ({"mu": MEAN * np.nan, "sigma": COVARIANCE}, "not finite"),
        ({"mu": np.array(list("abcdef")), "sigma": COVARIANCE}, "no statistics"),
        ({"mu": MEAN, "sigma": COVARIANCE, "protocol": np.array("{")}, "no statistics"),
        ({"mu": MEAN, "sigma": np.triu(COVARIANCE)}, "must be symmetric"),
        ({"mu": MEAN, "sigma": COVARIANCE, "features": X[:, :5]}, r"features must be .*\(N, 6\)"),
        ({"mu": MEAN, "sigma": COVARIANCE, "features": X, "n": 31}, "n is 31, .* 30 features"),
        ({"mu": MEAN, "sigma": COVARIANCE, "features": WITH_NAN}, r"features\[7, 2\] is nan"),
    ],
)
def test_bad_statistics(tmp_path, content, message):
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(InputError, match=message):
        load_statistics(tmp_path / "x.npz")


def test_fuzzed_files(tmp_path):
    path = tmp_path / "x.npz"
    save_statistics(path, Statistics(MEAN, COVARIANCE, 30, {}))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        content = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        content[rng.integers(0, len(content))] ^= 255
        path.write_bytes(content)
        try:
            load_statistics(path)
        except InputError:
            refused += 1
    assert refused > 80


def test_another_extractor_is_refused():
    ours = {"extractor": "inception", "extractor_sha256": "ab", "backend": "pytorch-fid",
            "resize": "r", "precision": "float32", "fast": False}  # fmt: skip
    check_same_extractor(Statistics(MEAN, COVARIANCE, 30, dict(ours)), ours, "x.npz")
    check_same_extractor(Statistics(MEAN, COVARIANCE, 30, None), ours, "x.npz")
    other = json.loads(json.dumps(ours)) | {"backend": "torch-fidelity"}
    with pytest.raises(ProtocolError, match="backend 'torch-fidelity', here 'pytorch-fid'"):
        check_same_extractor(Statistics(MEAN, COVARIANCE, 30, other), ours, "x.npz")
