"""evonorm-eval gan, stats and table with an extractor that is quick."""

import importlib.metadata
import json
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_plugins.metrics import gan
from evonorm_plugins.metrics.fid import frechet_distance
from evonorm_plugins.metrics.inception_score import inception_score
from tests.conftest import BlockMeans
from tests.metrics.conftest import pictures, save_pngs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    sets = {"fake": pictures(90, 20, 0), "real": pictures(110, 24, 1)}
    return {name: save_pngs(images, root / name) for name, images in sets.items()}, sets


@pytest.fixture
def score(evaluate, quick_extractor):
    """``score(*arguments)``: the record of a run that must succeed."""

    def run(*arguments):
        status, out, err = evaluate(
            "gan", "--feature-extractor", quick_extractor, "--json", "--quiet", *arguments
        )
        assert status == 0, err
        return json.loads(out)

    return run


def expected(sets):
    module = BlockMeans()
    (fake, logits), (real, _) = (
        module(torch.from_numpy(sets[k]).permute(0, 3, 1, 2)) for k in ("fake", "real")
    )
    moments = [(f.double().mean(0).numpy(), np.cov(f.double().T.detach().numpy()))
               for f in (fake, real)]  # fmt: skip
    return frechet_distance(*moments[0], *moments[1]), inception_score(logits.detach())


def value(record, key):
    (found,) = (v for k, v in record["scores"].items() if k.startswith(f"{key}["))
    return found


def test_scores_of_folders(score, folders, quick_extractor):
    paths, sets = folders
    record = score("--fake", paths["fake"], "--real", paths["real"], "--workers", 2)
    fid, (mean, std) = expected(sets)
    assert value(record, "fid") == pytest.approx(fid, rel=1e-6)
    assert value(record, "inception_score_mean") == pytest.approx(mean, rel=1e-6)
    assert value(record, "inception_score_std") == pytest.approx(std, rel=1e-4)
    assert record["protocol"]["n_fake"] == 90
    assert record["protocol"]["n_real"] == 110


def test_the_extractors_name_stands_beside_every_score(score, evaluate, folders, quick_extractor):
    paths, _ = folders
    record = score("--fake", paths["fake"], "--real", paths["real"])
    assert record["scores"]
    assert all(key.endswith(f"[blocks.pt@{record['protocol']['extractor_sha256'][:8]}]")
               for key in record["scores"])  # fmt: skip
    arguments = ("--fake", paths["fake"], "--real", paths["real"], "--quiet")
    _, out, _ = evaluate("gan", "--feature-extractor", quick_extractor, *arguments)
    lines = [line for line in out.splitlines() if "FID" in line or "IS" in line]
    assert len(lines) == 3
    assert all("[blocks.pt@" in line for line in lines)


@pytest.mark.parametrize("batch_size", [1, 7, 90])
def test_batches_and_workers_do_not_matter(score, folders, batch_size):
    paths, sets = folders
    record = score(
        "--fake", paths["fake"], "--real", paths["real"], "--batch-size", batch_size, "--workers", 0
    )
    fid, (mean, _) = expected(sets)
    assert value(record, "fid") == pytest.approx(fid, rel=1e-6)
    assert value(record, "inception_score_mean") == pytest.approx(mean, rel=1e-6)


def test_arrays_zip_and_kept_statistics_give_the_same(
    score, evaluate, folders, quick_extractor, tmp_path
):
    paths, sets = folders
    np.save(tmp_path / "fake.npy", sets["fake"])
    np.savez(tmp_path / "real.npz", sets["real"])
    stats = tmp_path / "stats/ref.npz"
    command = ("stats", "--feature-extractor", quick_extractor, "--quiet", "--features")
    status, out, _ = evaluate(*command, "--real", tmp_path / "real.npz", "--out", stats)
    assert status == 0
    assert out == f"{stats}: statistics of 110 images\n"
    options = ("--is", "--fid", "--kid", "--prc", "--kid-subset-size", 30)
    options += ("--dc", "--fd-infinity", "--fd-infinity-smallest", 50)
    a = score("--fake", paths["fake"], "--real", paths["real"], *options)
    b = score("--fake", tmp_path / "fake.npy", "--real", stats, *options)
    assert len(a["scores"]) == 11
    for key in a["scores"]:
        assert a["scores"][key] == pytest.approx(b["scores"][key], rel=1e-6), key
    np.testing.assert_allclose(
        a["protocol"].pop("real_fingerprint"), b["protocol"].pop("real_fingerprint"), rtol=1e-6
    )
    assert a["protocol"] == b["protocol"]


def test_shuffle_matters_for_sorted_files(score, tmp_path):
    images = np.zeros((100, 8, 8, 3), np.uint8)
    for k in range(5):
        images[k * 20 : k * 20 + 20] = pictures(1, 8, k)
    np.save(tmp_path / "sorted.npy", images)
    arguments = ("--fake", tmp_path / "sorted.npy", "--is", "--splits", 5)
    shuffled, ordered = score(*arguments), score(*arguments, "--no-shuffle")
    assert value(ordered, "inception_score_mean") == pytest.approx(1, abs=1e-6)
    assert value(shuffled, "inception_score_mean") > 1.2
    assert (shuffled["protocol"]["shuffle"], ordered["protocol"]["shuffle"]) == (True, False)
    other = score(*arguments, "--shuffle-seed", 1)
    assert value(other, "inception_score_mean") != value(shuffled, "inception_score_mean")


def test_n_draws_with_the_seed(score, folders):
    paths, _ = folders
    arguments = ("--fake", paths["fake"], "--is", "--n", 40)
    a, b = score(*arguments), score(*arguments)
    c = score(*arguments, "--seeds", 1)
    assert a["protocol"]["n_fake"] == 40
    assert a["scores"] == b["scores"] != c["scores"]


def test_record_holds_the_whole_protocol(score, folders, tmp_path):
    paths, _ = folders
    out = tmp_path / "metrics.json"
    record = score("--fake", paths["fake"], "--real", paths["real"], "--out", out)
    assert json.loads(out.read_text()) == record
    protocol = record["protocol"]
    assert protocol["splits"] == 10
    assert (protocol["shuffle"], protocol["shuffle_seed"]) == (True, 2020)
    for key in ("resize", "extractor", "extractor_sha256", "ema", "mode", "truncation"):
        assert key in protocol
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert record["command"][0] == "evonorm-eval"
    assert str(paths["fake"]) in record["command"]
    assert any("90 generated images are fewer than 2048" in w for w in record["warnings"])


def test_grid_is_of_what_was_scored(score, folders, tmp_path):
    paths, _ = folders
    score("--fake", paths["fake"], "--real", paths["real"], "--grid", tmp_path / "grid.png")
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    step, side = 98, 96
    # Cell 1 of 8 x 8 is image 90 // 64 = 1, enlarged without smoothing.
    cell = grid[30 : 30 + side, 12 + step : 12 + step + side]
    enlarged = Image.fromarray(pictures(90, 20, 0)[1]).resize((side, side), 0)
    np.testing.assert_array_equal(cell, enlarged)
    assert grid.shape[1] == 2 * (8 * step - 2) + 3 * 12


def test_broken_files_are_named_or_counted(evaluate, score, quick_extractor, tmp_path):
    folder = save_pngs(pictures(30, 12), tmp_path / "fake")
    (folder / "0007.png").write_bytes(b"broken")
    arguments = ("--fake", folder, "--is", "--splits", 3)
    status, out, err = evaluate("gan", "--feature-extractor", quick_extractor, *arguments)
    assert (status, out) == (2, "")
    assert "0007.png" in err
    assert "Traceback" not in err
    skipped = score(*arguments, "--skip-broken")
    (folder / "0007.png").unlink()
    assert skipped["scores"] == score(*arguments)["scores"]
    assert skipped["protocol"]["n_fake"] == 29
    assert skipped["input"]["fake"]["broken_files_skipped"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fake", "FAKE", "--fid"], "fid need --real"),
        (["--real", "REAL"], "either --fake or --checkpoint"),
        (["--fake", "FAKE", "--checkpoint", "x.pt"], "either --fake or --checkpoint"),
        (["--fake", "gone"], "there is no file or folder gone"),
        (["--fake", "FAKE", "--splits", "91"], "over 91 splits"),
        (["--fake", "FAKE", "--n", "91"], "has 90 images, 91 were asked for"),
        (["--fake", "FAKE", "--real", "REAL", "--kid"], "subsets of 1000"),
        (["--fake", "FAKE", "--real", "REAL", "--prc", "--neighbours", "90"], "90 neighbours"),
        (["--fake", "FAKE", "--strict"], "--strict: 90 generated"),
        (["--fake", "FAKE", "--seeds", "0", "1"], "several --seeds need --checkpoint"),
        (["--fake", "FAKE", "--truncation", "0.5"], "--truncation belongs to --checkpoint"),
        (["--fake", "FAKE", "--device", "tpu"], "'tpu' is no device"),
        (["--fake", "FAKE", "--grid", "x.jpg"], "must end in .png"),
        (["--fake", "FAKE", "--out", "/proc/x/y.json"], "/proc/x/y.json cannot be written"),
        (["--fake", "FAKE", "--precision", "bfloat16"], "--precision and --fast belong to"),
        (["--fake", "FAKE", "--backend", "pytorch-fid"], "--backend belongs to Inception"),
        (["--checkpoint", "gone.pt"], "there is no file gone.pt"),
        (["--checkpoint", "https://example.org/x.pt"], "there is no file https://example.org"),
        (["--fake", "FAKE", "--real", "REAL", "--dc", "--dc-neighbours", "110"], "there are 110"),
        (["--fake", "FAKE", "--dc", "--fd-infinity"], "dc, fd-infinity need --real"),
        (["--fake", "FAKE", "--real", "REAL", "--fd-infinity"], "5000 (at least 2) to all images"),
        (
            [
                *("--fake", "FAKE", "--real", "REAL", "--fd-infinity"),
                *("--fd-infinity-smallest", "9", "--fd-infinity-points", "1"),
            ],
            "at 1 (at least 2) sizes",
        ),
        (["--fake", "FAKE", "--as-trained"], "--as-trained belongs to --checkpoint"),
        (["--checkpoint", "gone.pt", "--as-trained"], "--as-trained needs --real"),
        (["--fake", "FAKE", "--feature-extractor-weights", "x"], "there is no file x"),
        (["--fake", "FAKE", "--feature-extractor", "dinov3"], "it has clip-rn101, clip-rn50"),
        (["--fake", "FAKE", "--feature-extractor", "vgg16"], "vgg16 gives features alone"),
        (
            ["--fake", "FAKE", "--real", "REAL", "--feature-extractor", "vgg16", "--fast"],
            "--precision and --fast belong to",
        ),
        (
            [
                "--fake",
                "FAKE",
                "--feature-extractor",
                "inception-v3-compat",
                "--inception-weights",
                "https://example.org/x.pth",
            ],
            "--inception-weights: there is no file https://example.org/x.pth",
        ),
    ],
)
def test_bad_input_is_told_before_any_work(
    evaluate, folders, quick_extractor, monkeypatch, options, message
):
    paths, _ = folders
    options = [str(paths.get(option.lower(), option)) for option in options]
    monkeypatch.setattr("evonorm_plugins.metrics.gan.run_pass", None)  # would fail if called
    status, out, err = evaluate("gan", "--feature-extractor", quick_extractor, *options)
    assert (status, out) == (2, "")
    assert message in err


def test_statistics_are_checked(evaluate, score, folders, quick_extractor, tmp_path):
    paths, _ = folders
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(48), sigma=np.eye(48))
    record = score("--fake", paths["fake"], "--real", tmp_path / "theirs.npz")
    assert record["protocol"]["n_real"] is None
    assert "the number of real images is not known" in record["warnings"]
    command = ("gan", "--feature-extractor", quick_extractor, "--fake", paths["fake"])
    for arguments, message in (
        (
            ["--kid", "--kid-subset-size", 9, "--real", tmp_path / "theirs.npz"],
            "no single features",
        ),
        (["--real", tmp_path / "theirs.npz", "--n-real", 9], "holds statistics"),
    ):
        status, _, err = evaluate(*command, *arguments)
        assert status == 2
        assert message in err
    np.savez(tmp_path / "short.npz", mu=np.zeros(7), sigma=np.eye(7))
    status, _, err = evaluate(*command, "--real", tmp_path / "short.npz")
    assert status == 2
    assert "of 7 features, the extractor gives 48" in err


def scripted(tmp_path, name, forward):
    module = type("Module", (torch.nn.Module,), {"forward": forward})()
    images = torch.zeros(3, 3, 20, 20, dtype=torch.uint8)
    path = tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is announced to go
        torch.jit.save(torch.jit.trace(module, images, check_trace=False), path)
    return path


def test_an_extractor_without_logits_is_found_in_the_first_pass(evaluate, folders, tmp_path):
    paths, _ = folders
    extractor = scripted(tmp_path, "alone.pt", lambda self, x: x.float().mean((2, 3)))
    command = ("gan", "--fake", paths["fake"], "--real", paths["real"], "--workers", 0)
    status, out, err = evaluate(*command, "--feature-extractor", extractor)
    assert (status, out) == (2, "")
    assert "needs logits" in err
    assert "generated:" not in err  # no bar of the second pass
    status, out, err = evaluate(*command, "--feature-extractor", extractor, "--fid")
    assert status == 0, err


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda self, x: x.float().flatten(1),
            r"0003\.png: .*x\.pt@\w+ gives 1728 features, of images before 1200",
        ),
        (
            lambda self, x: x.float().mean((2, 3)) / (x.float().amax((1, 2, 3))[:, None] - 7),
            r"0003\.png: .*is inf",
        ),
    ],
)
def test_features_that_are_none_name_the_image(evaluate, tmp_path, forward, message):
    """Other lengths in another batch; numbers that are not finite."""
    images = [*pictures(3, 20), np.full((24, 24, 3), 7, np.uint8)]
    fake = save_pngs(images, tmp_path / "fake")
    extractor = scripted(tmp_path, "x.pt", forward)
    arguments = ("--fake", fake, "--real", fake, "--fid", "--batch-size", 1, "--workers", 0)
    status, out, err = evaluate("gan", "--feature-extractor", extractor, *arguments, "--quiet")
    assert (status, out) == (2, "")
    (line,) = (text for text in err.splitlines() if text.startswith("error: "))
    assert re.search(message, line)


def test_a_score_that_fails_leaves_the_others(
    evaluate, folders, quick_extractor, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise np.linalg.LinAlgError("SVD did not converge")

    paths, _ = folders
    monkeypatch.setattr("evonorm_plugins.metrics.gan.gaussian_distance", fail)
    out_file, grid = tmp_path / "x.json", tmp_path / "x.png"
    arguments = ("--fake", paths["fake"], "--real", paths["real"], "--quiet", "--json")
    arguments += ("--is", "--fid", "--prc", "--out", out_file, "--grid", grid)
    status, out, err = evaluate("gan", "--feature-extractor", quick_extractor, *arguments)
    assert status == 1
    assert "error: not all scores could be computed: fid: SVD did not converge" in err
    record = json.loads(out)
    assert json.loads(out_file.read_text()) == record
    assert value(record, "inception_score_mean") > 1
    assert value(record, "recall_fraction") >= 0
    assert record["runs"][0]["failed"] == {"fid": "SVD did not converge"}
    assert grid.exists()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_what_there_is(
    evaluate, folders, quick_extractor, tmp_path, monkeypatch, kind
):
    def interrupt(*_, **__):
        raise kind

    paths, _ = folders
    monkeypatch.setitem(gan._COMPUTED, "kid", interrupt)
    arguments = ("--fake", paths["fake"], "--real", paths["real"], "--quiet")
    arguments += ("--is", "--kid", "--kid-subset-size", 9, "--out", tmp_path / "x.json")
    status, out, err = evaluate("gan", "--feature-extractor", quick_extractor, *arguments)
    assert status == 1
    assert "IS [" in out
    record = json.loads((tmp_path / "x.json").read_text())
    assert [key.partition("[")[0] for key in record["scores"]] == [
        "inception_score_mean", "inception_score_std"
    ]  # fmt: skip
    if kind is KeyboardInterrupt:
        assert record["warnings"][-1] == "ended before all scores of seed 0 were computed"
        assert err.splitlines()[-1] == "error: interrupted"


def test_a_file_that_cannot_be_written_at_last_loses_nothing(
    evaluate, folders, quick_extractor, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(28, "No space left on device")

    paths, _ = folders
    out_file = tmp_path / "x.json"
    command = ("gan", "--feature-extractor", quick_extractor, "--fake", paths["fake"], "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr("evonorm_plugins.metrics.grid.write_grid", fail)
        status, out, _ = evaluate(*command, "--out", out_file, "--grid", tmp_path / "x.png")
    assert status == 1
    assert "IS [" in out
    assert "inception_score_mean" in out_file.read_text()
    monkeypatch.setattr("evonorm_plugins.metrics.protocol.write_json", fail)
    status, out, _ = evaluate(*command, "--out", out_file)
    assert status == 1
    assert "IS [" in out


def test_subsets_that_are_too_small_for_a_line_are_named(score, folders):
    paths, _ = folders
    arguments = ("--fake", paths["fake"], "--real", paths["real"], "--fd-infinity")
    record = score(*arguments, "--fd-infinity-smallest", 48, "--fd-infinity-points", 4)
    assert any("48 is not above the 48 features" in text for text in record["warnings"])
    assert (record["protocol"]["fd_smallest"], record["protocol"]["fd_points"]) == (48, 4)
    larger = score(*arguments, "--fd-infinity-smallest", 49)
    assert not any("features" in text for text in larger["warnings"])


def test_table_over_runs(score, evaluate, folders, tmp_path):
    paths, _ = folders
    fids = {}
    for layer, seeds in (("EvoNormS0", (0, 1, 2)), ("BN-ReLU", (3, 4, 5))):
        for seed in seeds:
            out = tmp_path / f"{layer}{seed}.json"
            arguments = ("--real", paths["real"], "--name", layer, "--n", 50, "--seeds", seed)
            record = score("--fake", paths["fake"], *arguments, "--out", out)
            fids.setdefault(layer, []).append(value(record, "fid"))
    files = sorted(tmp_path.glob("*.json"))
    status, out, _ = evaluate("table", *files)
    assert status == 0
    assert "IS [blocks.pt@" in out.splitlines()[0]
    row = next(line for line in out.splitlines() if line.startswith("EvoNormS0"))
    assert f"{np.median(fids['EvoNormS0']):.2f}/{min(fids['EvoNormS0']):.2f}" in row
    status, out, _ = evaluate("table", "--json", *files)
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert rows["BN-ReLU"]["runs"] == 3
    assert rows["BN-ReLU"]["sampling_seeds"] == [3, 4, 5]
    assert rows["BN-ReLU"]["training_seeds"] == []  # nobody knows those of a folder
    column = next(c for k, c in rows["BN-ReLU"]["columns"].items() if k.startswith("FID"))
    assert column["best"] == min(fids["BN-ReLU"])


def test_table_says_which_seeds_it_is_over(evaluate, tmp_path):
    """Three trainings are not three draws of one."""
    files = {"three": [(0, [0]), (1, [0]), (2, [0])], "draws": [(4, [0, 1, 2])]}
    for name, records in files.items():
        for seed, draws in records:
            runs = [{"sampling_seed": d, "scores": {"fid": 7.0 + seed + d}} for d in draws]
            record = {"kind": "gan", "name": name, "protocol": {}, "runs": runs}
            record["input"] = {"fake": {"training_seed": seed}}
            (tmp_path / f"{name}{seed}.json").write_text(json.dumps(record))
    status, out, err = evaluate("table", *sorted(tmp_path.glob("*.json")))
    assert status == 0, err
    header, draws, three = (re.split(r"\s{2,}", line.strip()) for line in out.splitlines()[:3])
    assert header == ["layer", "runs", "seeds", "FID (median/best)"]
    assert three == ["three", "3", "training 0, 1, 2", "8.00/7.00"]
    assert draws == ["draws", "3", "training 4; sampling 0, 1, 2", "12.00/11.00"]


def test_table_refuses_to_mix_protocols(score, evaluate, folders, tmp_path):
    paths, _ = folders
    changes = {"a": (), "b": ("--splits", 5), "c": ("--n", 60), "d": ("--real", paths["fake"])}
    for name, options in changes.items():
        arguments = ("--fake", paths["fake"], "--real", paths["real"], *options)
        score(*arguments, "--out", tmp_path / f"{name}.json")
    for name, key in (("b", "splits 10 and 5"), ("c", "n_fake 90 and 60"), ("d", "n_real")):
        status, out, err = evaluate("table", tmp_path / "a.json", tmp_path / f"{name}.json")
        assert (status, out) == (2, "")
        assert key in err
    (tmp_path / "x.json").write_text('{"fid": 3}')
    status, _, err = evaluate("table", tmp_path / "x.json")
    assert status == 2
    assert "was not written by evonorm-eval" in err


def test_workers_are_bounded(monkeypatch):
    from types import SimpleNamespace

    from evonorm_plugins.cli.eval.common import MAX_WORKERS, pick_workers

    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(256))
    assert pick_workers(SimpleNamespace(workers=None)) == MAX_WORKERS == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert pick_workers(SimpleNamespace(workers=None)) == 4
    assert pick_workers(SimpleNamespace(workers=0)) == 0


def test_fuzzed_records_never_give_a_traceback(score, evaluate, folders, tmp_path):
    paths, _ = folders
    score("--fake", paths["fake"], "--real", paths["real"], "--out", tmp_path / "a.json")
    whole = json.loads((tmp_path / "a.json").read_text())
    rng = np.random.default_rng(0)
    for _ in range(100):
        record = json.loads(json.dumps(whole))
        node = record
        while isinstance(node, dict) or (isinstance(node, list) and node):
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = keys[rng.integers(len(keys))]
            if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
                node[key] = [None, "x", [1], {}, 3.5][rng.integers(5)]
                break
            node = node[key]
        (tmp_path / "b.json").write_text(json.dumps(record))
        status, _, err = evaluate("table", tmp_path / "a.json", tmp_path / "b.json")
        assert status in (0, 2), err
