"""Options: types, defaults, and messages that name what is wrong."""

from pathlib import Path

import pytest

import biggan
from biggan.config import batch_per_rank, from_dict, load_config
from evonorm_plugins.errors import ConfigError
from evonorm_plugins.registry import parse_name
from evonorm_plugins.training.config import to_dict

CONFIGS = sorted(Path(biggan.__file__).parent.glob("configs/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_of_the_package(path):
    config = load_config(path)
    assert from_dict(to_dict(config)) == config
    if path.stem.startswith("Base"):
        return
    assert path.stem.split("_")[1] == parse_name(config.norm)[0]
    assert config.output_dir.endswith(path.stem)


def test_the_rows_of_table_5():
    rows = {load_config(p).norm for p in CONFIGS if p.stem.startswith("imagenet128_")}
    groups = {f"GN-ReLU(groups={g})" for g in (8, 16, 32)}
    assert rows - groups == {"BN-ReLU", "EvoNormB0", "LN-ReLU", "PixelNorm-ReLU", "EvoNormS0"}
    assert groups < rows
    config = load_config(next(p for p in CONFIGS if p.stem == "imagenet128_EvoNormS0"))
    assert (config.batch_size, config.d_steps, config.g_lr, config.d_lr) == (2048, 2, 5e-5, 2e-4)
    assert (config.beta1, config.beta2, config.ema_decay) == (0.0, 0.999, 0.9999)
    assert (config.norm_eps, config.spectral_eps) == (1e-4, 1e-4)
    assert (config.channels, config.depth, config.z_size) == (128, 2, 128)


def test_files_and_overrides(tmp_path):
    (tmp_path / "base.yaml").write_text("norm: GN-ReLU\nsteps: 10\n")
    path = tmp_path / "config.yaml"
    path.write_text("_BASE_: base.yaml\nsteps: 20\ng_lr: 1e-3\n")
    config = load_config(path, ["norm=EvoNormS0(groups=16)", "attention=[32, 64]", "flip=false"])
    assert (config.norm, config.steps, config.g_lr) == ("EvoNormS0(groups=16)", 20, 1e-3)
    assert (config.attention, config.flip) == ([32, 64], False)


BAD = [
    ({"resolution": 96}, "resolution=96 is not one of 32, 64, 128, 256, 512"),
    ({"chanels": 64}, "there is no option 'chanels'; did you mean 'channels'?"),
    ({"norm": "EvoNormX"}, "norm='EvoNormX': unknown norm-activation 'EvoNormX'"),
    ({"norm": "BN-ReLU(groups=4)"}, "norm='BN-ReLU(groups=4)': .*groups"),
    ({"steps": "many"}, "steps='many' is not int"),
    ({"steps": 1.5}, "steps=1.5 is not int"),
    ({"flip": 1}, "flip=1 is not bool"),
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"g_lr": -1}, "g_lr=-1.0 must be at least"),
    ({"g_lr": float("nan")}, "g_lr=nan must be at least"),
    ({"beta1": 1}, "beta1=1.0 must be below 1"),
    (
        {"attention": [48]},
        "attention=.48.: at resolution 128 both networks have feature maps of 8, 16, 32, 64, not",
    ),
    ({"channels": 3}, "channels=3 gives a block of 3 channels"),
    ({"channels": 4, "channel_multipliers": [1] * 6}, "channels=4 gives 4 channels to the att"),
    ({"channel_multipliers": [4, 4]}, "must be 6 numbers of at least 1 for resolution 128"),
    ({"channel_multipliers": [1, 1, 2, 1, 1, 1]}, "must not grow"),
    ({"image_channels": 4}, "image_channels=4 is not one of 1, 3"),
    ({"precision": "fp16", "device": "cpu"}, "precision=fp16 needs a GPU"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_bad_values(values, message):
    with pytest.raises(ConfigError, match=message.replace("(groups=4)", r"\(groups=4\)")):
        from_dict(values)


def test_bad_files(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml. is no file and no gan config"):
        load_config(tmp_path / "none.yaml")
    path = tmp_path / "config.yaml"
    path.write_text("steps: [1\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path)
    path.write_text("_BASE_: config.yaml\n")
    with pytest.raises(ConfigError, match="leads back"):
        load_config(path)
    path.write_text("steps: 1\n")
    with pytest.raises(ConfigError, match="'steps' is not of the form key=value"):
        load_config(path, ["steps"])


def test_batch_of_a_rank():
    config = from_dict({"batch_size": 48, "accumulations": 2})
    assert batch_per_rank(config, 8) == 3
    with pytest.raises(ConfigError, match="not divisible by 5 ranks x accumulations=2; 40 or 50"):
        batch_per_rank(config, 5)
