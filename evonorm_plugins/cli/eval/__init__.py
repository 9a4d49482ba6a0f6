"""The scores of the paper's Tables 4 and 5, with the protocol beside them.

Results go to stdout as a table (``--json``: as JSON) and with ``--out`` to a file; progress and
warnings go to stderr.
"""

import sys

COMMANDS = {
    "ap": "AP and AR of detections, as pycocotools",
    "gan": "Inception score, FID, KID, precision and recall of generated images",
    "extractor": "a feature extractor for gan, of a classifier",
    "stats": "statistics of real images, computed once and kept",
    "table": "the paper's table from the JSON of several runs",
}
EXAMPLES = """
examples:
  evonorm eval ap --gt instances_val.json --dt detections.json
  evonorm eval stats --real imagenet-train.zip --out ref_stats.npz
  evonorm eval gan --fake samples/ --real ref_stats.npz --out runs/a/metrics.json
  evonorm eval table runs/*/metrics.json
  evonorm eval gan --help
"""


def main(argv=None):
    """The command ``evonorm-eval``; returns the exit status."""
    from evonorm_plugins.command import main

    return main(sys.modules[__name__], "evonorm-eval", argv)
