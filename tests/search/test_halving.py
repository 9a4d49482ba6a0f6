"""The bars that candidates are compared with."""

from evonorm_plugins.search.halving import Bars


def rung(accuracy, top=None, anchor="a"):
    details = {"rungs": {"25": {anchor: accuracy}}}
    return details if top is None else {**details, "top": top}


def test_there_are_no_bars_before_there_are_enough_results():
    bars = Bars(0.5, 0.5, least=3)
    bars.add({})
    for accuracy in (0.1, 0.4):
        bars.add(rung(accuracy))
    assert bars.now() == {"25": {}}
    bars.add(rung(0.2))
    assert bars.now() == {"25": {"a": 0.2}}


def test_the_best_share_reaches_the_bar():
    """Of each anchor its own; of equal ones all."""
    bars = Bars(0.4, 0.25, least=1)
    for k in range(10):
        bars.add(rung(k / 10, top=k / 20 if k > 5 else None))
    bars.add(rung(0.3, anchor="b"))
    assert bars.now() == {"25": {"a": 0.6, "b": 0.3}, "top": 0.45}
    assert sum(k / 10 >= 0.6 for k in range(10)) == 4
    for _ in range(9):
        bars.add(rung(0.9))
    assert bars.now()["25"]["a"] == 0.9


def test_a_share_of_1_refuses_nothing():
    bars = Bars(1.0, 1.0, least=1)
    for accuracy in (0.5, 0.3):
        bars.add(rung(accuracy, top=accuracy))
    assert bars.now() == {"25": {"a": 0.3}, "top": 0.3}
