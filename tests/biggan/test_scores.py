"""Scores of the averaged generator during training, with an extractor of one's own."""

import json
import zipfile

import numpy as np
import pytest
import torch

from biggan.config import from_dict
from biggan.generator import Generator
from biggan.run import Run
from biggan.sampling import sample_uint8
from biggan.scores import Scorer
from evonorm_plugins.data.open import open_source
from evonorm_plugins.errors import CollapseError, ConfigError, DataError
from evonorm_plugins.metrics.fid import frechet_distance
from evonorm_plugins.metrics.inception_score import inception_score
from evonorm_plugins.training.config import to_dict
from evonorm_plugins.training.ranks import Ranks
from tests import ranks
from tests.biggan.pictures import picture
from tests.biggan.test_runs import state, two_ranks


class Colours(torch.nn.Module):
    """Mean and spread of every channel; logits are six of their sums."""

    def forward(self, images):
        x = images.float() / 255
        features = torch.cat([x.mean((2, 3)), x.var((2, 3), correction=0)], 1)
        return features, 20 * torch.cat([features[:, :2], features[:, :4] * 0.5], 1)


@pytest.fixture
def extractor(tmp_path):
    path = tmp_path / "colours.pt"
    torch.jit.script(Colours()).save(path)
    return str(path)


def test_scores_are_those_of_the_metrics(extractor, tiny, image_zip):
    config = tiny(extractor=extractor, score_samples=30, data=str(image_zip))
    source = open_source(config.data)
    generator = Generator(config)
    score = Scorer(source, config, Ranks("cpu"))(generator)
    fake = torch.cat(list(sample_uint8(generator, 30)))
    real = torch.stack(
        [torch.from_numpy(np.asarray(decoded(source.read(i)))).permute(2, 0, 1) for i in range(24)]
    )
    features = [Colours()(images) for images in (real, fake)]
    moments = [(f.double().mean(0), torch.cov(f.double().T)) for f, _ in features]
    expected = frechet_distance(*moments[0], *moments[1])
    assert score["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    assert score["class_score"] == pytest.approx(inception_score(features[1][1])[0], rel=1e-4)
    assert "fid" not in score
    assert (score["n_fake"], score["n_real"], score["seed"]) == (30, 24, 0)
    assert score["weights"] == "averaged (EMA)"


def decoded(data):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def test_best_checkpoints_and_collapse(extractor, tiny, image_zip, tmp_path, monkeypatch):
    options = {"extractor": extractor, "data": str(image_zip), "steps": 6, "score_every": 1}
    folder = tmp_path / "run"
    config = tiny(**options, output_dir=str(folder), keep_best=2, checkpoint_every=1)
    distances = iter([5.0, 3.0, 4.0, 2.5, 9.0, 9.5])
    monkeypatch.setattr(Scorer, "__init__", lambda self, *_: setattr(self, "distance", "fd"))
    monkeypatch.setattr(Scorer, "__call__", lambda self, generator: {"fd": next(distances)})
    with pytest.raises(CollapseError, match=r"collapsed at step 6; the last good .*good\.pt"):
        Run(config, Ranks("cpu")).train()
    kept = sorted(p.name for p in folder.glob("best*"))
    assert kept == ["best-2.pt", "best-4.pt", "best.pt"]
    best = state(folder, "best.pt")
    assert (best["step"], best["score"]["fd"]) == (4, 2.5)
    assert set(best) == {"format", "version", "config", "classes", "step", "score", "ema"}
    # The score of step 5 was three times the best one: good.pt is from before.
    assert state(folder, "good.pt")["step"] == 4
    assert state(folder)["step"] == 5


def test_samples_that_are_all_the_same_are_a_collapse(tiny, image_zip, tmp_path, monkeypatch):
    config = tiny(data=str(image_zip), output_dir=str(tmp_path), steps=3, sample_every=1)
    spreads = iter([50.0, 40.0, 2.0])
    monkeypatch.setattr("biggan.run.diversity", lambda images: next(spreads))
    with pytest.raises(CollapseError, match="collapsed at step 3"):
        Run(config, Ranks("cpu")).train()


def test_bad_extractors(tiny, image_zip, tmp_path):
    source = open_source(str(image_zip))
    with pytest.raises(ConfigError, match=r"extractor=none\.pt: .*there is no file none\.pt"):
        Scorer(source, tiny(extractor="none.pt"), Ranks("cpu"))
    with pytest.raises(ConfigError, match="score_samples=5 must be at least 10"):
        Scorer(source, tiny(extractor="none.pt", score_samples=5), Ranks("cpu"))


def test_without_inceptions_weights_nothing_is_begun(tiny, tmp_path, monkeypatch):
    """Before the data are looked at: these are not there."""
    for variable in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    monkeypatch.delenv("EVONORM_INCEPTION_WEIGHTS", raising=False)
    config = tiny(data="nowhere.zip", extractor="inception", output_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError) as error:
        Run(config, Ranks("cpu"))
    for part in ("extractor=inception: ", "EVONORM_INCEPTION_WEIGHTS=FILE", "extractor=null"):
        assert part in str(error.value)
    assert not (tmp_path / "run").exists()


class Broken(torch.nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, images):
        features = images.float().mean((2, 3))
        return features / 0 * 0 if self.kind == "nan" else features[:, :, None]


@pytest.mark.parametrize(("kind", "message"), [("nan", "not all finite"), ("shape", "3, 1")])
def test_an_extractor_that_gives_no_features_is_found_before_training(
    kind, message, tiny, image_zip, tmp_path
):
    path = tmp_path / "broken.pt"
    torch.jit.script(Broken(kind)).save(path)
    config = tiny(extractor=str(path), score_samples=30, data=str(image_zip))
    with pytest.raises(ConfigError, match=rf"extractor=.*broken\.pt: .*{message}"):
        Scorer(open_source(config.data), config, Ranks("cpu"))


def test_a_damaged_image_is_not_called_the_extractors_fault(extractor, tiny, image_zip, tmp_path):
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(image_zip) as old, zipfile.ZipFile(damaged, "w") as new:
        for k, name in enumerate(old.namelist()):
            new.writestr(name, b"no image" if k == 3 else old.read(name))
    config = tiny(extractor=extractor, score_samples=30, data=str(damaged), max_corrupt=0)
    with pytest.raises(DataError, match=r"damaged\.zip:") as error:
        Scorer(open_source(config.data), config, Ranks("cpu"))
    assert "extractor" not in str(error.value)


def score_of_rank(case, rank):
    config, state = case
    generator = Generator(from_dict(config))
    generator.load_state_dict(state)
    group = Ranks.current()
    group.device = torch.device("cpu")
    return Scorer(open_source(config["data"]), generator.config, group)(generator)


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
def test_a_rank_without_images_gets_the_score_of_one_process(
    norm, extractor, tiny, image_zip, tmp_path
):
    config = tiny(norm=norm, extractor=extractor, score_samples=30, data=str(image_zip))
    config.standing_statistics = 2
    generator = Generator(config)
    alone = Scorer(open_source(config.data), config, Ranks("cpu"))(generator)
    cases = {"score": (to_dict(config), generator.state_dict())}
    for score in ranks.run(score_of_rank, cases, 2, tmp_path):
        assert score["score"]["frechet_distance"] == pytest.approx(alone["frechet_distance"])
        assert score["score"]["class_score"] == pytest.approx(alone["class_score"])


@two_ranks
@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
def test_what_training_reports_is_what_evaluation_gives(
    norm, extractor, train, tiny_arguments, evaluate, tmp_path
):
    """On two ranks, of images that are cropped and resized, with 70 that are no whole batches."""
    data = tmp_path / "large.zip"
    with zipfile.ZipFile(data, "w") as archive:
        for k in range(30):
            archive.writestr(f"{k % 3}/{k}.png", picture(k % 3, k, size=40 + k))
    options = {"norm": norm, "extractor": extractor, "data": data, "score_samples": 70, "steps": 3}
    options |= {"standing_statistics": 2, "ema_decay": 0.5, "g_lr": 0.01, "seed": 3}
    code, output = train(tiny_arguments(tmp_path / "run", **options), ranks=2)
    assert code == 0, output
    assert "scores: 70 generated images are fewer than 2048" in output
    reported = state(tmp_path / "run", "best.pt")["score"]
    assert (reported["n_fake"], reported["n_real"]) == (70, 30)
    arguments = ["--checkpoint", tmp_path / "run/best.pt", "--real", data, "--as-trained"]
    arguments += ["--n", 70, "--standing-statistics", 2, "--seeds", 3, "--device", "cpu"]
    status, out, err = evaluate(
        "gan", *arguments, "--feature-extractor", extractor, "--json", "--quiet"
    )
    assert status == 0, err
    record = json.loads(out)
    scores = {key.partition("[")[0]: value for key, value in record["scores"].items()}
    assert scores["fid"] == pytest.approx(reported["frechet_distance"], rel=1e-5)
    assert scores["inception_score_mean"] == pytest.approx(reported["class_score"], rel=1e-5)
    assert record["protocol"]["n_real"] == 30


def test_too_few_images_for_a_distance(extractor, tiny, tmp_path):
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("a/0.png", picture(0, 0))
    config = tiny(extractor=extractor, score_samples=30, data=str(tmp_path / "one.zip"))
    with pytest.raises(ConfigError, match="FID needs at least 2 images of each set, there are 1"):
        Scorer(open_source(config.data), config, Ranks("cpu"))


def test_an_extractor_by_name_without_weights_is_told_first(tiny, tmp_path, monkeypatch):
    for variable in ("XDG_CACHE_HOME", "TORCH_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    for name, message in {
        "dinov2-vit-s-14": r"get https://.*/dinov2_vits14_pretrain\.pth",
        "dinov2": "it has .*dinov2-vit-s-14",
    }.items():
        config = tiny(data="nowhere.zip", extractor=name, output_dir=str(tmp_path / "run"))
        with pytest.raises(ConfigError, match=f"extractor={name}: .*{message}"):
            Run(config, Ranks("cpu"))
