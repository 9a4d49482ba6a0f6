"""Score generated images: Inception score, FID, KID, precision, recall, density and coverage.

All of them in one pass over the images."""

from evonorm_plugins.cli import types
from evonorm_plugins.cli.eval import common
from evonorm_plugins.errors import InputError

EXAMPLES = """
examples:
  a folder of samples against a zip of real images:
    evonorm eval gan --fake samples/ --real imagenet-val.zip --is --fid --kid --prc --dc
  FD-DINOv2, with its weights in a cache or by --feature-extractor-weights:
    evonorm eval gan --fake samples/ --real imagenet-val.zip --feature-extractor dinov2-vit-l-14
  three draws of 50,000 images from a checkpoint, against statistics kept by "evonorm eval stats":
    evonorm eval gan --checkpoint runs/a/best.pt --real ref_stats.npz --seeds 0 1 2 \\
        --out runs/a/metrics.json
  the score that a training with score_samples=50000 and seed=0 has reported:
    evonorm eval gan --checkpoint runs/a/best.pt --real imagenet/train --as-trained
  the same on 8 GPUs:
    torchrun --nproc-per-node 8 --no-python -- evonorm eval gan --checkpoint ... --real real.npz
  as pytorch-fid:
    evonorm eval gan --fake samples/ --real real/ --backend pytorch-fid --fid
  without internet:
    evonorm eval gan --inception-weights pt_inception-2015-12-05-6726825d.pth --fake ... --real ...
"""


def add_arguments(parser):
    images = parser.add_argument_group("images")
    images.add_argument("--fake", metavar="PATH", help="folder, zip, npz or npy (uint8)")
    images.add_argument("--checkpoint", metavar="FILE", help="sample a BigGAN instead of --fake")
    images.add_argument(
        "--real",
        metavar="PATH",
        help="folder, zip, npz or npy; or statistics: of evonorm-eval, pytorch-fid (npz) or "
        "torch-fidelity's cache (pt)",
    )
    images.add_argument(
        "--n", type=types.count, help="generated images to score (default: all; checkpoint 50000)"
    )
    images.add_argument(
        "--as-trained",
        action="store_true",
        help="with --checkpoint: real images as its discriminator saw them, the middle at its "
        "resolution; as many as are generated, evenly spaced, as the scores of training",
    )
    images.add_argument("--n-real", type=types.count, help="real images to use (default: all)")
    images.add_argument(
        "--seeds",
        nargs="+",
        type=types.count_or_none,
        default=[0],
        metavar="SEED",
        help="of sampling, one run each; of the draw where --n leaves some out (default: 0)",
    )
    metrics = parser.add_argument_group("scores (default: --is, and --fid if there is --real)")
    for name, text in (
        ("is", "Inception score"),
        ("fid", "Frechet Inception distance"),
        ("kid", "kernel Inception distance"),
        ("prc", "precision and recall"),
        ("dc", "density and coverage"),
        ("fd-infinity", "FID extrapolated to infinitely many generated images"),
    ):
        metrics.add_argument(f"--{name}", action="store_true", help=text)
    metrics.add_argument("--splits", type=types.count, default=10, help="of IS (default: 10)")
    metrics.add_argument("--no-shuffle", action="store_true", help="IS in the order of the files")
    metrics.add_argument(
        "--shuffle-seed",
        type=types.count_or_none,
        default=2020,
        help="of the splits of IS and the subsets of KID and --fd-infinity (default: 2020, as "
        "torch-fidelity)",
    )
    metrics.add_argument("--kid-subsets", type=types.count, default=100)
    metrics.add_argument("--kid-subset-size", type=types.count, default=1000)
    metrics.add_argument("--neighbours", type=types.count, default=3, help="of --prc (default: 3)")
    metrics.add_argument("--dc-neighbours", type=types.count, default=5, help="(default: 5)")
    metrics.add_argument(
        "--fd-infinity-smallest",
        type=types.count,
        default=5000,
        metavar="N",
        help="images of the smallest of its subsets (default: 5000)",
    )
    metrics.add_argument(
        "--fd-infinity-points",
        type=types.count,
        default=15,
        metavar="N",
        help="subsets that the line is fitted to (default: 15)",
    )
    sampling = parser.add_argument_group("sampling a checkpoint")
    sampling.add_argument("--no-ema", action="store_true", help="the weights as they were trained")
    sampling.add_argument("--truncation", type=float, help="largest magnitude of a latent's number")
    sampling.add_argument(
        "--classes", nargs="+", type=int, help="used in turn (default: drawn uniformly)"
    )
    sampling.add_argument(
        "--standing-statistics",
        type=types.count_or_none,
        metavar="PASSES",
        help="that batch statistics are averaged over (default: 100); 0: the moving ones",
    )
    common.add_extraction(parser)
    common.add_output(parser, grid="picture of some of the images that were scored")
    parser.add_argument("--name", help="of the row in a table (default: the norm of a checkpoint)")


def run(args):
    from evonorm_plugins.metrics.grid import check_grid_path

    common.check_extraction(args)
    options = _options(args)
    if args.grid:
        check_grid_path(args.grid)
    inputs = [args.fake, args.real, args.checkpoint, *common.read_files(args)]
    common.check_outputs(args, inputs, results=["out"], pictures=["grid"])
    with common.join(args) as ranks:
        return _run(args, options, ranks)


def _options(args):
    from evonorm_plugins.metrics.gan import METRICS, Options

    if bool(args.fake) == bool(args.checkpoint):
        raise InputError("give either --fake or --checkpoint")
    asked = tuple(metric for metric in METRICS if getattr(args, metric))
    usual = ("is", "fid") if args.real else ("is",)
    if not common.gives_logits(args):
        if "is" in asked or not args.real:
            raise InputError(
                f"--feature-extractor {args.feature_extractor} gives features alone, without the "
                "logits that an Inception score needs: give --real, and not --is"
            )
        usual = ("fid",)
    options = Options(
        metrics=asked or usual,
        splits=args.splits,
        shuffle=not args.no_shuffle,
        shuffle_seed=args.shuffle_seed,
        kid_subsets=args.kid_subsets,
        kid_subset_size=args.kid_subset_size,
        neighbours=args.neighbours,
        dc_neighbours=args.dc_neighbours,
        fd_smallest=args.fd_infinity_smallest,
        fd_points=args.fd_infinity_points,
    )
    if options.needs_real and not args.real:
        need = sorted(metric.replace("_", "-") for metric in set(options.metrics) - {"is"})
        raise InputError(f"{', '.join(need)} need --real")
    if args.as_trained and args.checkpoint:
        _check_as_trained(args, options)
    if args.checkpoint:
        if len(set(args.seeds)) < len(args.seeds):
            raise InputError(f"--seeds {' '.join(map(str, args.seeds))}: one comes twice")
        return options
    if len(args.seeds) > 1:
        raise InputError("several --seeds need --checkpoint: files are the same for every seed")
    given = {
        "--as-trained": args.as_trained,
        "--no-ema": args.no_ema,
        "--truncation": args.truncation is not None,
        "--classes": args.classes,
        "--standing-statistics": args.standing_statistics is not None,
    }
    for option, value in given.items():
        if value:
            raise InputError(f"{option} belongs to --checkpoint")
    return options


def _check_as_trained(args, options):
    from evonorm_plugins.metrics.statistics_file import is_statistics

    if not (args.real and options.needs_real):
        raise InputError("--as-trained needs --real, and a score that compares with it")
    if is_statistics(args.real):
        raise InputError(f"--as-trained: {args.real} holds statistics, not images")
    if args.skip_broken or args.float_range:
        raise InputError("--as-trained reads images as a training: not with --skip-broken or "
                         "--float-range")  # fmt: skip


def _run(args, options, ranks):
    from evonorm_plugins.cli.eval.gan_report import Report
    from evonorm_plugins.metrics import gan
    from evonorm_plugins.metrics.grid import evenly_spaced, write_grid

    fake = _open_fake(args, ranks.device)
    real, real_images = _open_real(args, options, fake)
    warnings = _counted(args, options, fake, real, real_images)
    # Last of what can be wrong: the weights may have to be downloaded.
    extractor = common.build_extractor(args, _backend(args, real), ranks.device)
    if real is not None:
        _check_real(args.real, real, extractor, options, ranks)
    if args.skip_broken:
        if not args.checkpoint:
            common.leave_out_broken(fake, args.fake, args, args.n, args.seeds[0])
        if real_images:
            common.leave_out_broken(real_images, args.real, args, args.n_real)
        warnings = _counted(args, options, fake, real, real_images)
    for message in warnings:
        common.warn(message)
    args.batch_size = common.pick_batch_size(args, extractor)
    how = {"batch_size": args.batch_size, "workers": common.pick_workers(args)}
    how |= {"device": ranks.device, "quiet": args.quiet}
    panels = {}
    if real_images:
        shown = evenly_spaced(len(real_images)) if args.grid else ()
        wanted = {"features": options.real_features, "logits": "is" in options.metrics}
        real, pictures = gan.real_statistics(
            real_images, extractor, **wanted, pictures=shown, **how
        )
        panels[f"real ({real.n})"] = [pictures[k] for k in shown]
    report = Report(args, options, extractor, fake, real_images, real, warnings)
    report.check_subsets()
    try:
        for seed in args.seeds:
            if args.checkpoint:  # files have drawn with it already
                fake.options["seed"] = seed
            shown = evenly_spaced(len(fake)) if args.grid and not report.runs else ()
            scored = gan.Scored()
            report.runs[seed] = scored
            gan.score(fake, real, extractor, options, into=scored, pictures=shown, **how)
            if scored.pictures:
                generated = {f"generated ({len(fake)})": [scored.pictures[k] for k in shown]}
                panels = generated | panels
    except BaseException:
        if ranks.is_main:  # what there is by now may have taken hours
            report.show_what_there_is(seed)
        raise
    if not ranks.is_main:
        return 0
    report.show()
    if args.grid:
        write_grid(args.grid, panels)
        common.note(f"wrote {args.grid}")
    report.raise_failed()
    return 0


def _counted(args, options, fake, real, real_images):
    """Warnings about too few images; with --skip-broken also before they are left out."""
    from evonorm_plugins.metrics.protocol import check_counts

    n_real = len(real_images) if real_images else real and real.n
    if args.n_real and real_images:
        n_real = min(args.n_real, n_real)
    n_fake = min(args.n or len(fake), len(fake))
    options.check(n_fake, n_real)
    counts = {"generated": n_fake} | ({"real": n_real} if options.needs_real else {})
    return check_counts(counts, args.strict)


def _open_real(args, options, fake):
    """``(statistics, None)``, ``(None, source)``, or ``(None, None)`` where none are needed."""
    from evonorm_plugins.metrics.statistics_file import is_statistics, load_statistics

    if not options.needs_real:
        if args.real:
            common.note("--real is not used: the Inception score needs no real images")
        return None, None
    if args.as_trained:
        from biggan.data import open_training_images

        n = args.n_real or len(fake)
        return None, open_training_images(args.real, fake.config, n, common.pick_workers(args))
    if not is_statistics(args.real):
        return None, common.open_set(args.real, args, args.n_real)
    if args.n_real:
        raise InputError(f"--n-real: {args.real} holds statistics, not images to choose from")
    return load_statistics(args.real), None


def _backend(args, real):
    """The one asked for, else that of the reference statistics, else torch-fidelity."""
    if args.backend or args.feature_extractor:
        return args.backend
    if real is None:
        return "torch-fidelity"
    if real.protocol is not None:
        return real.protocol.get("backend") or "torch-fidelity"
    return "pytorch-fid" if args.real.lower().endswith(".npz") else "torch-fidelity"


def _check_real(path, real, extractor, options, ranks):
    from evonorm_plugins.metrics.statistics_file import check_same_extractor

    check_same_extractor(real, extractor.describe(), path)
    if options.real_features and real.features is None:
        raise InputError(
            f"{path} holds no single features, which KID, precision, recall, density and coverage "
            "need; give the images, or make statistics with: evonorm eval stats --features"
        )
    if {"fid", "fd_infinity"} & set(options.metrics) and ranks.is_main:
        try:
            real.gaussian.factor  # noqa: B018, which is kept for the distances
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
    if real.protocol is None:
        common.warn(
            f"{path} does not say how it was measured; it is taken for the same weights and for "
            f"the resizing of {getattr(extractor, 'backend', 'the extractor')}"
        )


def _open_fake(args, device):
    if not args.checkpoint:
        return common.open_set(args.fake, args, args.n, args.seeds[0])
    from biggan.generated import CheckpointImages

    return CheckpointImages(
        args.checkpoint,
        args.n or 50_000,
        seed=args.seeds[0],
        ema=not args.no_ema,
        truncation=args.truncation,
        classes=args.classes,
        standing_statistics=args.standing_statistics,
        device=device,
    )
