"""AP and AR of detections in COCO's format, equal to pycocotools'.

Scores a file of results (--gt, --dt), or runs a Detectron2 model on images first (--config-file).
"""

from contextlib import nullcontext

from evonorm_plugins.cli import types
from evonorm_plugins.cli.eval import common
from evonorm_plugins.cli.eval.ap_report import lines_of, record_of
from evonorm_plugins.errors import InputError

EXAMPLES = """
examples:
  boxes, and masks if there are any:
    evonorm eval ap --gt instances_val.json --dt detections.json
  boxes alone, at most 300 detections an image, each category by itself:
    evonorm eval ap --gt val.json --dt found.json --iou bbox --max-dets 1 10 300 --per-category
  what is wrong with the detections, and the curves of precision over recall:
    evonorm eval ap --gt val.json --dt found.json --errors --plot curves.png
  a model of tools/train_net.py:
    evonorm eval ap --config-file detectron_configs/stock/mask_rcnn_R_50_FPN_EvoNormS0.yaml \\
        --weights output/model_final.pth --val-json instances_val.json --val-images val2017/
"""


def add_arguments(parser):
    files = parser.add_argument_group("files")
    files.add_argument("--gt", metavar="FILE", help='ground truth, COCO "instances"')
    files.add_argument("--dt", metavar="FILE", help="detections, COCO results")
    model = parser.add_argument_group("a model of Detectron2")
    model.add_argument("--config-file", metavar="FILE")
    model.add_argument("--weights", metavar="FILE", help="checkpoint")
    model.add_argument("--val-json", metavar="FILE", help="ground truth")
    model.add_argument("--val-images", metavar="DIR", help="folder of its images")
    model.add_argument("--save-dt", metavar="FILE", help="keep the detections")
    model.add_argument(
        "--trust-config",
        action="store_true",
        help="build the Python objects that config files name, which may run any code",
    )
    model.add_argument(
        "--trust-weights",
        action="store_true",
        help="unpickle weights that hold more than arrays, which may run any code",
    )
    model.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="of the config")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--iou",
        nargs="+",
        choices=("bbox", "segm"),
        help="what is compared (default: what the detections have)",
    )
    protocol.add_argument(
        "--max-dets",
        nargs="+",
        type=types.count,
        default=[1, 10, 100],
        metavar="N",
        help="limits of detections per image and category (default: 1 10 100)",
    )
    protocol.add_argument(
        "--per-category", action="store_true", help="each category by itself, the best first"
    )
    protocol.add_argument(
        "--errors",
        action="store_true",
        help="how many of the detections are wrong in which way, how many objects are missed, and "
        "what each kind of error costs in AP50 (needs hotcoco)",
    )
    protocol.add_argument(
        "--mask-areas",
        action="store_true",
        help="masks are small, medium or large by their own area, as Detectron2 counts (default: "
        "by the detection's box where it has one, as pycocotools)",
    )
    protocol.add_argument(
        "--renumber-ids",
        action="store_true",
        help="count matches of annotation id 0, which pycocotools takes for no match",
    )
    protocol.add_argument(
        "--evaluator",
        choices=("hotcoco", "pycocotools"),
        help="the numbers are the same (default: the first that is installed)",
    )
    output = common.add_output(parser, grid="ground truth beside predictions; with --config-file")
    output.add_argument("--plot", metavar="FILE.png", help="curves of precision over recall")
    parser.add_argument("--name", help="of the row in a table (default: the detections' file)")


def run(args):
    from evonorm_plugins.metrics.ap import check_limits, pick_evaluator, without_garbage_collector

    _check(args)
    inputs = [args.gt, args.dt, args.config_file, args.val_json, args.weights]
    pictures = ["grid", "plot"]
    common.check_outputs(args, inputs, results=["out"], pictures=pictures, others=["save_dt"])
    check_limits(args.max_dets)
    pick_evaluator(args.evaluator, errors=args.errors)
    # A model may make what only the collector finds.
    with nullcontext() if args.config_file else without_garbage_collector():
        return _run(args)


def _run(args):
    from evonorm_plugins.coco.read import read_json

    names = (args.val_json, "the model's detections") if args.config_file else (args.gt, args.dt)
    ground_truth = read_json(names[0], "annotation file")
    model = failure = None
    if args.config_file:
        detections, model, failure = _detect(args, ground_truth)
    else:
        detections = read_json(args.dt, "results")
    results, data, warnings = _evaluate(args, ground_truth, detections, names, model)
    record = record_of(args, results, data, model, warnings)
    try:
        common.show(record, lines_of(record), args)
    finally:
        if args.plot:
            from evonorm_plugins.metrics.ap_plot import plot_curves

            plot_curves(args.plot, results)
            common.note(f"wrote {args.plot}")
    if failure is not None:
        raise failure
    return 0


def _check(args):
    files, model = (args.gt, args.dt), (args.config_file, args.weights)
    data = args.val_json, args.val_images
    if args.plot:
        from evonorm_plugins.metrics.ap_plot import check_plot

        check_plot(args.plot)
    if any(files) == any((*model, *data)):
        raise InputError("give --gt and --dt, or --config-file with --weights")
    if any(files):
        if not all(files):
            raise InputError("--gt and --dt belong together")
        for option in ("grid", "save_dt", "opts"):
            if getattr(args, option):
                raise InputError(f"--{option.replace('_', '-')} needs --config-file")
        return
    if not all((*model, *data)):
        raise InputError("--config-file, --weights, --val-json and --val-images belong together")
    if args.grid:
        from evonorm_plugins.metrics.grid import check_grid_path

        check_grid_path(args.grid)


def _detect(args, ground_truth):
    """``(detections, description, failure of the picture)`` of the model.

    The ground truth is known to be good before it runs.
    """
    from evonorm_plugins.coco.score import coco_data

    try:
        from evonorm_plugins.integrations.detectron2.evaluate import detect
    except ImportError as error:
        raise InputError(
            f"--config-file needs Detectron2, which cannot be imported ({error}); "
            "tools/install_detectron2.py installs it"
        ) from None
    coco_data(ground_truth, [], masks="segm" in (args.iou or ()), names=(args.val_json, ""))
    detections, model, failure = detect(args, ground_truth)
    args.iou = args.iou or (["bbox", "segm"] if model["masks"] else ["bbox"])
    return detections, model, failure


def _tasks(detections):
    """Boxes and masks where the detections have them; boxes where there are no detections."""
    entries = [d for d in detections if isinstance(d, dict)] if isinstance(detections, list) else []
    tasks = ["bbox"] if not entries or any(d.get("bbox") for d in entries) else []
    return tasks + (["segm"] if any(d.get("segmentation") for d in entries) else []) or ["bbox"]


def _evaluate(args, ground_truth, detections, names, model):
    """``({task: ApResult}, the CocoData of the last, warnings)``."""
    from evonorm_plugins.coco.score import coco_data
    from evonorm_plugins.metrics.ap import average_precision

    results, warnings, data = {}, {}, None
    for task in args.iou or _tasks(detections):
        data = coco_data(
            ground_truth,
            detections,
            masks=task == "segm",
            mask_areas=args.mask_areas or model is not None,
            renumber=args.renumber_ids,
            names=names,
        )
        for message in data.warnings:
            if message not in warnings:
                common.warn(message)
            warnings[message] = None
        options = {"max_dets": args.max_dets, "evaluator": args.evaluator, "errors": args.errors}
        results[task] = average_precision(data, task, **options)
    return results, data, list(warnings)
