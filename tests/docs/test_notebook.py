"""The notebook runs from top to bottom, holds the outputs of such a run, and shows what it says."""

import json
import warnings

import pytest

from tests.docs.blocks import ROOT

CELLS = json.loads((ROOT / "docs/tour.ipynb").read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def names():
    """What the notebook's names stand for at its end."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib").use("Agg")
    names = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*non-interactive")
        for k, cell in enumerate(CODE):
            exec(compile("".join(cell["source"]), f"cell {k}", "exec"), names)
    return names


def test_networks_learn_to_read(names):
    assert set(names["accuracies"]) == {"BN-ReLU", "EvoNormB0", "EvoNormS0"}
    assert min(names["accuracies"].values()) > 0.9


def test_few_images_in_a_pass_change_batch_norm_alone(names):
    def change(name):
        many, few = names["losses"][name][-20:], names["few_losses"][name][-20:]
        return sum(few) / sum(many) - 1

    assert abs(change("EvoNormS0")) < 0.02
    assert change("BN-ReLU") > 0.5


def test_an_output_does_not_depend_on_other_images(names):
    differences = {n: names["alone_and_in_company"](names["networks"][n]) for n in names["few"]}
    assert differences["EvoNormS0"] < 1e-4
    assert differences["BN-ReLU"] > 0.1


def test_folding_keeps_the_outputs(names):
    assert names["difference"] < 1e-4
    assert (
        names["folded"].fold_report.parameters_after < names["folded"].fold_report.parameters_before
    )


def test_outputs_are_stored():
    """Each cell that prints or draws has what it printed or drew, and none has an error."""
    for number, cell in enumerate(CODE, 1):
        source = "".join(cell["source"])
        kinds = {output["output_type"] for output in cell["outputs"]}
        assert kinds <= {"display_data", "stream"}
        assert ("display_data" in kinds) == ("plt.show()" in source)
        assert ("stream" in kinds) == ("print(" in source)
        assert cell["execution_count"] == number
