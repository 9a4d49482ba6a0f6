import pytest

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.integrations.torchvision import Options


def test_rates_of_the_multistep_schedule():
    options = Options(lr=0.4, warmup=10, warmup_factor=0.1, iterations=120)
    # 3/4 and 11/12 of 120 are 90 and 110.
    expected = {0: 0.04, 5: 0.22, 10: 0.4, 89: 0.4, 90: 0.04, 109: 0.04, 110: 0.004}
    assert {k: options.rate(k) for k in expected} == pytest.approx(expected)


def test_rates_at_given_steps():
    options = Options(lr=1.0, warmup=0, steps=(3, 5), iterations=7)
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
        ({"batch": 0}, "batch 0 must be at least 1"),
        ({"iterations": 0}, "iterations 0 must be at least 1"),
        ({"lr": 0.0}, r"lr 0.0 must be above 0"),
        ({"lr": float("nan")}, "lr nan must be above 0"),
        ({"weight_decay": -1}, "weight_decay -1 must be at least 0"),
        ({"momentum": 1.5}, "momentum 1.5 must be from 0 to 1"),
        ({"schedule": "linear"}, "schedule 'linear' is not one of multistep, cosine"),
        ({"min_size": (900, 2000)}, "min_size 900 2000 must be from 1 to max_size 1333"),
        ({"steps": (5, 3)}, "steps 5 3 must rise, from 1 on"),
        ({"steps": (5,), "schedule": "cosine"}, "steps belong to the schedule multistep"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(ConfigError, match=message):
        Options(**change).check()
