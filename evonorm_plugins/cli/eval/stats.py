"""Compute the statistics of real images once and keep them, for ``evonorm eval gan --real``.

The npz holds mu, sigma (float64), the number of images and the protocol; pytorch-fid reads it too.
"""

from evonorm_plugins.cli import types
from evonorm_plugins.cli.eval import common
from evonorm_plugins.errors import InputError

EXAMPLES = """
examples:
  evonorm eval stats --real train.zip --out ref_stats.npz
  with single features, for --kid, --prc and --dc (8 KB an image):
    evonorm eval stats --real train.zip --out ref_stats.npz --features
  for scores as pytorch-fid's:
    evonorm eval stats --real train/ --out ref_stats.npz --backend pytorch-fid
"""


def add_arguments(parser):
    parser.add_argument("--real", required=True, metavar="PATH", help="folder, zip, npz or npy")
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="file to write")
    parser.add_argument("--n-real", type=types.count, help="images to use (default: all)")
    parser.add_argument("--features", action="store_true", help="keep single features too")
    common.add_extraction(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="JSON on stdout instead of a line")
    common.add_quiet(group)


def run(args):
    from evonorm_plugins.files import check_output
    from evonorm_plugins.metrics import gan, statistics_file
    from evonorm_plugins.metrics.protocol import as_json, versions

    if not args.out.lower().endswith(".npz"):
        raise InputError(f"--out {args.out} must end in .npz")
    common.check_extraction(args)
    inputs = [args.real, *common.read_files(args)]
    check_output(args.out, inputs=inputs, force=args.force, ours=statistics_file.is_ours)
    with common.join(args) as ranks:
        source = common.open_set(args.real, args, args.n_real)
        warnings = _counted(source, args)
        extractor = common.build_extractor(args, args.backend or "torch-fidelity", ranks.device)
        if args.skip_broken:
            common.leave_out_broken(source, args.real, args, args.n_real)
            warnings = _counted(source, args)
        for message in warnings:
            common.warn(message)
        statistics, _ = gan.real_statistics(
            source,
            extractor,
            features=args.features,
            batch_size=common.pick_batch_size(args, extractor),
            workers=common.pick_workers(args),
            device=ranks.device,
            quiet=args.quiet,
        )
        if not ranks.is_main:
            return 0
        statistics.protocol |= {
            "source": source.describe(),
            "warnings": warnings,
            "versions": versions("gan"),
            "command": args.command_line,
        }
        statistics_file.save_statistics(args.out, statistics)
        if args.json:
            record = {"kind": "stats", "out": args.out, "n_real": statistics.n}
            print(as_json(record | {"protocol": statistics.protocol}))
        else:
            print(f"{args.out}: statistics of {statistics.n} images")
    return 0


def _counted(source, args):
    """Warnings about too few images; with --skip-broken also before they are left out."""
    from evonorm_plugins.metrics.protocol import check_counts

    if len(source) < 2:
        raise InputError(f"{args.real}: a covariance needs at least 2 images, there is 1")
    return check_counts({"real": len(source)}, args.strict)
