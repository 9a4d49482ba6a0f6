"""Tables of plain text."""

from evonorm_plugins.text_table import aligned, markdown, spread

ROWS = [("layer", "AP", "best"), ("S0", "38.25", ""), ("BN-ReLU", "9.1", "10")]


def test_the_first_column_is_to_the_left_and_lines_end_in_no_blank():
    assert aligned(ROWS).splitlines() == [
        "layer       AP  best",
        "S0       38.25",
        "BN-ReLU    9.1    10",
    ]


def test_columns_to_the_left():
    assert aligned(ROWS, left=(2,)).splitlines() == [
        "  layer     AP  best",
        "     S0  38.25",
        "BN-ReLU    9.1  10",
    ]


def test_markdown():
    assert (
        markdown(["layer", "AP"], [("S0", 38.25)])
        == "| layer | AP |\n| --- | --- |\n| S0 | 38.25 |"
    )


def test_mean_and_half_the_range():
    assert spread([41.0]) == "41.0"
    assert spread([41.0, 44.0]) == "42.5 ± 1.5"
