"""Images from a trained generator: a grid, a folder of PNG files, an npz, or interpolations."""

import json
import sys
from pathlib import Path

from evonorm_plugins import command

EXAMPLES = """
examples:
  64 images of class 207 in a grid:
    evonorm gan sample --checkpoint best.pt --classes 207 --truncation 0.5 \\
        --n 64 --out grid.png
  50,000 images of all classes, for scores:
    evonorm gan sample --checkpoint best.pt --n 50000 --out samples.npz
  a folder of PNG files, classes by name:
    evonorm gan sample --checkpoint best.pt --classes cat dog --n 100 --out samples/
  from one class to another, 8 rows of 9 images:
    evonorm gan sample --checkpoint best.pt --interpolate class --n 8 --out sheet.png
"""


def add_arguments(parser):
    parser.add_argument("--checkpoint", required=True, help="best.pt or checkpoint.pt of a run")
    parser.add_argument(
        "--out", required=True, type=Path, help="FILE.png (grid), FILE.npz, or a new folder"
    )
    parser.add_argument("--n", type=int, default=64, help="images; rows of an interpolation sheet")
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="numbers or names, used in turn (default: drawn)",
    )
    parser.add_argument("--truncation", type=float, help="largest magnitude of a latent's numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--columns", type=int, help="of a grid (default: square) or sheet (9)")
    parser.add_argument("--interpolate", choices=["z", "class", "both"], help="draw a sheet")
    parser.add_argument("--no-ema", action="store_true", help="the weights as they were trained")
    parser.add_argument(
        "--standing-statistics",
        type=int,
        metavar="PASSES",
        help="forward passes that batch statistics are averaged over (default: 100 for norms that "
        "have them); 0 keeps the moving ones of training",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def run(args):
    """Draw and write what the arguments say, and print the record of it."""
    from biggan.draw import draw

    record = draw(args)
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        for key, value in record.items():
            print(f"{key:<22}{value}")


def main(argv=None):
    """The command line ``python -m biggan.sample``; returns the exit status."""
    return command.main(sys.modules[__name__], "python -m biggan.sample", argv)


if __name__ == "__main__":
    # By its name: as __main__ it may be run by another module's, which is found under that name.
    from biggan.sample import main

    sys.exit(main())
