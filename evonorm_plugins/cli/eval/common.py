"""What several commands share: options, the extractor, how results are shown."""

import os
import sys

from evonorm_plugins.cli import types
from evonorm_plugins.errors import InputError

MAX_WORKERS = 8


def add_output(parser, grid=None):
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    group.add_argument("--out", metavar="FILE", help="also write the JSON to a file")
    if grid:
        group.add_argument("--grid", metavar="FILE.png", help=grid)
    add_quiet(group)
    return group


def add_quiet(group):
    group.add_argument("--force", action="store_true", help="replace files that are there")
    group.add_argument("--quiet", action="store_true", help="no progress bars")


def check_outputs(args, inputs, *, results=(), pictures=(), others=()):
    """Find out before any work that a result cannot be written where an option says.

    Args:
        inputs: paths of what is read.
        results: options of the command's JSON, ``pictures`` of its pictures: former ones may be
            replaced; files of ``others``, as all that is not its own, with --force alone.
    """
    from evonorm_plugins.files import check_output, holds_record
    from evonorm_plugins.plots import is_ours

    kinds = (
        (results, lambda path: holds_record(path, "kind", "runs", "protocol")),
        (pictures, is_ours),
        (others, None),
    )
    taken = {}
    for names, ours in kinds:
        for name in names:
            path = getattr(args, name)
            if path is not None:
                option = f"--{name.replace('_', '-')}"
                other = taken.setdefault(os.path.realpath(path), option)
                if other != option:
                    raise InputError(f"{option} and {other} name the same file {path}")
                check_output(path, name=option, inputs=inputs, force=args.force, ours=ours)


def add_extraction(parser):
    """Options of feature extraction."""
    from evonorm_plugins.metrics.protocol import BACKENDS, PRECISIONS

    group = parser.add_argument_group("features")
    group.add_argument(
        "--backend",
        choices=BACKENDS,
        help="whose layers and resizing (default: those of the reference statistics, otherwise "
        "torch-fidelity)",
    )
    group.add_argument(
        "--inception-weights",
        metavar="FILE",
        help="pt_inception-2015-12-05-6726825d.pth (default: EVONORM_INCEPTION_WEIGHTS, the cache, "
        "the download)",
    )
    group.add_argument("--no-download", action="store_true", help="never download the weights")
    group.add_argument(
        "--feature-extractor",
        metavar="NAME|FILE",
        help="another extractor: one of torch-fidelity's by name (dinov2-vit-b-14, clip-vit-b-32 "
        "...), or a module of torch.jit.save or torch.export.save that maps uint8 images "
        "(B, 3, H, W) to features, or to features and logits",
    )
    group.add_argument(
        "--feature-extractor-weights",
        metavar="FILE",
        help="of an extractor by name (default: from the caches; they are not downloaded)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the network; bfloat16 labels the scores",
    )
    group.add_argument("--device", help="cuda, cpu, cuda:1 ... (default: cuda where there is one)")
    group.add_argument(
        "--batch-size",
        type=types.count,
        help="(default: the backend's, 64 or 50; its features are then the same to the last bit)",
    )
    group.add_argument(
        "--fast",
        action="store_true",
        help="fold batch norms, channels-last: 1.7 times as fast on a CPU, features move by 3e-7",
    )
    group.add_argument(
        "--workers",
        type=types.count_or_none,
        help=f"processes that read images (default: the cores, {MAX_WORKERS} at most)",
    )
    group.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out and count image files that cannot be read (reads every file once more)",
    )
    group.add_argument(
        "--float-range",
        nargs=2,
        type=float,
        metavar=("BLACK", "WHITE"),
        help="values of black and white in npy and npz files of floating point images",
    )
    group.add_argument(
        "--strict", action="store_true", help="fail where there would be warnings of small sets"
    )


def join(args):
    """The processes that torchrun started, or this one, on the device asked for."""
    from evonorm_plugins.training.ranks import Ranks

    # One process may wait long for the one that computes scores.
    return Ranks(args.device, timeout_minutes=240)


def pick_workers(args):
    if args.workers is not None:
        return args.workers
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MAX_WORKERS, max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def pick_batch_size(args, extractor):
    from evonorm_plugins.metrics.inception import BATCH_SIZES

    return args.batch_size or BATCH_SIZES[extractor.describe()["backend"] or "torch-fidelity"]


def check_extraction(args):
    """Find out before any work what is wrong with the options of :func:`add_extraction`."""
    from evonorm_plugins.metrics.registered import INCEPTION, check_extractor

    given, weights = args.feature_extractor, args.feature_extractor_weights
    if given == INCEPTION and not os.path.isfile(given):  # what there is without the option
        args.backend = args.backend or "torch-fidelity"
        args.feature_extractor = given = None
    if not given:
        if weights is not None:
            raise InputError(
                "--feature-extractor-weights belong to a --feature-extractor by name; those of "
                "Inception are --inception-weights"
            )
    else:
        for option in ("inception_weights", "backend"):
            if getattr(args, option):
                raise InputError(f"--{option.replace('_', '-')} belongs to Inception, not to "
                                 "--feature-extractor")  # fmt: skip
        if args.precision != "float32" or args.fast:
            raise InputError("--precision and --fast belong to Inception")
        check_extractor(given)
    for option in ("inception_weights", "feature_extractor_weights"):
        path = getattr(args, option)
        if path is not None and not os.path.isfile(path):
            raise InputError(
                f"--{option.replace('_', '-')}: there is no file {path}; it must be one on this "
                "machine"
            )


def gives_logits(args):
    """False where the extractor asked for is known to give features alone."""
    return not args.feature_extractor or os.path.isfile(args.feature_extractor)


def read_files(args):
    """Paths of what the options of :func:`add_extraction` read."""
    return [args.feature_extractor, args.feature_extractor_weights, args.inception_weights]


def build_extractor(args, backend, device):
    """The extractor that the options ask for, which :func:`check_extraction` has looked at."""
    from evonorm_plugins.metrics import weights
    from evonorm_plugins.metrics.inception import InceptionExtractor
    from evonorm_plugins.metrics.registered import open_extractor
    from evonorm_plugins.training.ranks import Ranks

    if args.feature_extractor:
        return open_extractor(
            args.feature_extractor, device, weights=args.feature_extractor_weights, notify=note
        )
    path, sha256 = Ranks.current().main_first(
        lambda: weights.find_inception_weights(
            args.inception_weights, download=not args.no_download, notify=note
        )
    )
    extractor = InceptionExtractor(
        path, sha256, backend=backend, precision=args.precision, fast=args.fast
    )
    if not extractor.is_reference:
        warn(
            f"{path} is not the weights file that FID and IS are defined by (sha256 {sha256}); "
            f"the scores are labelled {extractor.label}"
        )
    return extractor.to(device)


def open_set(path, args, n=None, seed=0):
    """A source of images, ``n`` of them drawn if given; with --skip-broken they are not yet drawn.

    Reading all of them takes long, and comes last of what can be wrong: :func:`leave_out_broken`.
    """
    from evonorm_plugins.metrics.data import ImageSet

    source = ImageSet(path, args.float_range)
    if args.skip_broken:
        _check_n(source, path, n)
    else:
        _draw(source, path, n, seed)
    return source


def leave_out_broken(source, path, args, n=None, seed=0):
    """Leave out broken files, and draw ``n`` of the others if given."""
    from evonorm_plugins.metrics.features import progress_bar, stepped

    bar = progress_bar(args.quiet)(f"reading {path}", len(source))
    broken = source.drop_broken(pick_workers(args), lambda it: stepped(it, bar))
    for message in broken:
        warn(f"left out: {message}")
    _draw(source, path, n, seed)


def _check_n(source, path, n):
    if n is not None and n > len(source):
        raise InputError(f"{path} has {len(source)} images, {n} were asked for")


def _draw(source, path, n, seed):
    import numpy as np

    _check_n(source, path, n)
    if n is not None and n < len(source):
        # Drawn, not the first: files are often in the order of their classes.
        chosen = np.random.default_rng(seed).choice(len(source), n, replace=False)
        source.choose(np.sort(chosen))


def note(message):
    from evonorm_plugins.training.ranks import Ranks

    if Ranks.current().is_main:
        print(message, file=sys.stderr, flush=True)


def warn(message):
    note(f"warning: {message}")


def show(record, lines, args):
    """Print a result, and write it where ``--out`` says; each of them even if the other fails."""
    from evonorm_plugins.metrics.protocol import as_json, write_json

    try:
        if args.out:
            write_json(args.out, record)
            note(f"wrote {args.out}")
    finally:  # what was computed is shown even where it cannot be kept
        print(as_json(record) if args.json else "\n".join(lines), flush=True)
