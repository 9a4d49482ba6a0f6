import pytest

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.integrations.torchvision import Options, load_options


def test_rates_of_the_multistep_schedule():
    options = Options(lr=0.4, warmup=10, warmup_factor=0.1, iterations=120)
    # 3/4 and 11/12 of 120 are 90 and 110.
    expected = {0: 0.04, 5: 0.22, 10: 0.4, 89: 0.4, 90: 0.04, 109: 0.04, 110: 0.004}
    assert {k: options.rate(k) for k in expected} == pytest.approx(expected)


def test_rates_at_given_steps():
    options = Options(lr=1.0, warmup=0, steps=[3, 5], iterations=7)
    assert [options.rate(k) for k in range(7)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_rates_of_the_cosine_schedule():
    options = Options(lr=2.0, warmup=0, schedule="cosine", iterations=6)
    assert [options.rate(k) for k in (0, 2, 3, 4)] == pytest.approx([2, 1.5, 1, 0.5])


def test_the_rate_follows_the_batch_where_none_is_given():
    assert Options(batch=4).base_rate() == pytest.approx(0.005)
    assert Options(batch=4, lr=0.3).base_rate() == 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"iterations": 0}, "iterations=0 must be at least 1"),
        ({"lr": 0.0}, "lr=0 must be above 0"),
        ({"lr": float("nan")}, "lr=nan must be at least 0"),
        ({"weight_decay": -1}, "weight_decay=-1 must be at least 0"),
        ({"momentum": 1.5}, r"momentum=1\.5 must be from 0 to 1"),
        ({"schedule": "linear"}, "schedule='linear' is not one of multistep, cosine"),
        ({"min_size": [900, 2000]}, r"min_size=\[900, 2000\] must be from 1 to max_size=1333"),
        ({"steps": [5, 3]}, r"steps=\[5, 3\] must rise, from 1 on"),
        ({"steps": [5], "schedule": "cosine"}, "steps belong to schedule=multistep"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(ConfigError, match=message):
        Options(**change).check()


def test_options_of_a_file_a_command_line_and_flags(tmp_path):
    (tmp_path / "base.yaml").write_text("batch: 8\nlr: 1e-2\nmodel_options: {nms_thresh: 0.3}\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: base.yaml\nseed: 7\nmin_size: [64, 96]\n")
    overrides = ("lr=0.5", "seed=8", "box_detections_per_img=300")
    options = load_options(tmp_path / "mine.yaml", overrides, {"seed": 9})
    assert options == Options(
        batch=8,
        lr=0.5,
        seed=9,
        min_size=[64, 96],
        model_options={"nms_thresh": 0.3, "box_detections_per_img": 300},
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("batch=many",), "batch='many' is not int"),
        (("flip=2",), "flip=2 is not bool"),
        (("steps=[a]",), "steps=.* is not list of integers"),
        (("batch",), "'batch' is not of the form key=value"),
        (("model_options=3",), "model_options=3 is not dict"),
        (("schedule=linear",), "schedule='linear' is not one of multistep, cosine"),
    ],
)
def test_values_of_other_types(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_options(None, overrides)
