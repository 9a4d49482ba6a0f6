"""Train a classifier with many options: a random choice of the combinations that a file lists.

Trials run on Ray, on this machine or on a cluster. The folder of the sweep has results.csv,
results.txt and accuracy.png, written again after each trial.
"""

EXAMPLES = """
examples:
  evonorm sweep --config mini_inception_sweep data=cifar10-train.zip val_data=cifar10-test.zip
  on a Ray cluster whose machines see the same files, after an interruption:
    evonorm sweep --config mini_inception_sweep --address HOST:6379 --resume data=... val_data=...
"""


def add_arguments(parser):
    parser.add_argument("--config", required=True, metavar="NAME", help="a sweep's YAML file")
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in output_dir")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster (default: this machine)"
    )
    parser.add_argument("--json", action="store_true", help="the trials as JSON, not as a table")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options over the file's")


def run(args):
    from evonorm_plugins.classification import sweep

    return sweep.main(
        args.config, args.overrides, resume=args.resume, address=args.address, as_json=args.json
    )
