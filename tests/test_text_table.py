"""Tables of plain text."""

from evonorm_plugins.text_table import aligned

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
