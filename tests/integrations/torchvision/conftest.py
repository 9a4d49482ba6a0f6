import pytest

from tests.conftest import load_tool


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Paths of a set of six images to learn and three to evaluate, 48 pixels wide."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make = load_tool("make_shapes_dataset").make_shapes_dataset
    return {k: str(v) for k, v in make(folder, train=6, val=3, size=48, class_colours=True).items()}
