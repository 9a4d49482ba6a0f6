"""The numbers of the two tools' own command lines, on the same images and the same weights."""

import contextlib
import io
import json
import sys
from unittest import mock

import pytest

from tests.metrics.conftest import pictures, save_pngs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return [save_pngs(pictures(n, 40, seed), root / str(seed)) for seed, n in ((0, 26), (1, 30))]


def run_main(main, arguments):
    """What a tool's command line prints."""
    out = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["tool", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
    ):
        main()
    return out.getvalue()


@pytest.fixture(scope="module")
def torch_fidelity(folders, inception_weights):
    from torch_fidelity.fidelity import main

    return json.loads(
        run_main(
            main,
            [
                *("--input1", folders[0], "--input2", folders[1], "--cpu", "--json", "--silent"),
                *("--isc", "--fid", "--kid", "--prc", "--kid-subset-size", 20, "--no-cache"),
                *("--feature-extractor", "inception-v3-compat", "--save-cpu-ram"),
                *("--feature-extractor-weights-path", inception_weights),
            ],
        )
    )


@pytest.fixture
def ours(evaluate, inception_weights):
    def run(folders, *options):
        status, out, err = evaluate(
            *("gan", "--fake", folders[0], "--real", folders[1], "--quiet", "--json"),
            *("--inception-weights", inception_weights, "--workers", 0, *options),
        )
        assert status == 0, err
        scores = json.loads(out)["scores"]
        # Random weights are not FID's.
        assert all("[inception-2015@" in key for key in scores)
        return {key.partition("[")[0]: value for key, value in scores.items()}

    return run


def test_torch_fidelity(torch_fidelity, folders, ours):
    theirs = torch_fidelity
    scores = ours(folders, "--is", "--fid", "--kid", "--prc", "--kid-subset-size", 20)
    assert theirs["inception_score_mean"] > 1.05
    assert theirs["frechet_inception_distance"] > 0.1
    for key in ("inception_score_mean", "inception_score_std"):
        assert scores[key] == pytest.approx(theirs[key], rel=1e-6), key
    assert scores["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    # It adds up kernels in float32.
    kid = theirs["kernel_inception_distance_mean"]
    assert scores["kid_mean"] == pytest.approx(kid, rel=1e-3, abs=1e-6)
    for key in ("precision", "recall", "f_score"):
        assert scores[f"{key}_fraction"] == pytest.approx(theirs[key], abs=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SciPy's, of sqrtm
def test_pytorch_fid(tmp_path, inception_weights, ours, monkeypatch):
    from pytorch_fid import fid_score

    folders = [save_pngs(pictures(n, 40, n), tmp_path / str(n)) for n in (8, 10)]
    monkeypatch.setenv("TORCH_HOME", str(inception_weights.parents[2]))
    arguments = [*folders, "--device", "cpu", "--num-workers", 0]
    theirs = float(run_main(fid_score.main, arguments).split()[-1])
    scores = ours(folders, "--fid", "--backend", "pytorch-fid")
    assert scores["fid"] == pytest.approx(theirs, rel=1e-6)
