"""AP and AR of detections in COCO's format, equal to pycocotools'.

Scores a file of results (--gt, --dt), or runs a Detectron2 model on images first (--config-file).
"""

from evonorm_plugins.cli import types
from evonorm_plugins.cli.eval import common
from evonorm_plugins.errors import InputError
from evonorm_plugins.text_table import aligned

EXAMPLES = """
examples:
  boxes, and masks if there are any:
    evonorm eval ap --gt instances_val.json --dt detections.json
  boxes alone, at most 300 detections an image, each category by itself:
    evonorm eval ap --gt val.json --dt found.json --iou bbox --max-dets 1 10 300 --per-category
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
    protocol.add_argument("--per-category", action="store_true")
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
    common.add_output(parser, grid="ground truth beside predictions; with --config-file")
    parser.add_argument("--name", help="of the row in a table (default: the detections' file)")


def run(args):
    from evonorm_plugins.coco.read import read_json
    from evonorm_plugins.coco.score import coco_data
    from evonorm_plugins.metrics.ap import check_limits, pick_evaluator

    _check(args)
    inputs = [args.gt, args.dt, args.config_file, args.val_json, args.weights]
    common.check_outputs(args, inputs, results=["out"], pictures=["grid"], others=["save_dt"])
    check_limits(args.max_dets)
    pick_evaluator(args.evaluator)
    names = (args.val_json, "the model's detections") if args.config_file else (args.gt, args.dt)
    ground_truth = read_json(names[0], "annotation file")
    if args.config_file:
        detections, model = _detect(args, ground_truth)
    else:
        detections, model = read_json(args.dt, "results"), None
    tasks = args.iou or _tasks(detections)
    results, warnings, data = {}, {}, None
    for task in tasks:
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
        results[task] = _evaluate(data, task, args)
    record = _record(args, results, data, model, list(warnings))
    common.show(record, _lines(record), args)
    return 0


def _check(args):
    files, model = (args.gt, args.dt), (args.config_file, args.weights)
    data = args.val_json, args.val_images
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
    """What the model finds, and its description; the ground truth is known to be good before."""
    from evonorm_plugins.coco.score import coco_data

    try:
        from evonorm_plugins.integrations.detectron2.evaluate import detect
    except ImportError as error:
        raise InputError(
            f"--config-file needs Detectron2, which cannot be imported ({error}); "
            "tools/install_detectron2.py installs it"
        ) from None
    coco_data(ground_truth, [], masks="segm" in (args.iou or ()), names=(args.val_json, ""))
    detections, model = detect(args, ground_truth)
    args.iou = args.iou or (["bbox", "segm"] if model["masks"] else ["bbox"])
    return detections, model


def _tasks(detections):
    """Boxes and masks where the detections have them; boxes where there are no detections."""
    entries = [d for d in detections if isinstance(d, dict)] if isinstance(detections, list) else []
    tasks = ["bbox"] if not entries or any(d.get("bbox") for d in entries) else []
    return tasks + (["segm"] if any(d.get("segmentation") for d in entries) else []) or ["bbox"]


def _evaluate(data, task, args):
    """``{"all": {number: percent}, "categories": {name: {number: percent}}}``."""
    from evonorm_plugins.metrics.ap import average_precision

    result = average_precision(data, task, max_dets=args.max_dets, evaluator=args.evaluator)
    found = len(data.objects) > 0
    numbers = {"all": _percent(result.summary()) if found else dict.fromkeys(result.summary())}
    if args.per_category:
        numbers["categories"] = {
            name: _percent(result.summary(k)) for k, name in enumerate(data.categories)
        }
    return numbers


def _percent(numbers):
    return {name: None if value is None else value * 100 for name, value in numbers.items()}


def _record(args, results, data, model, warnings):
    from evonorm_plugins.metrics.ap import pick_evaluator
    from evonorm_plugins.metrics.protocol import versions
    from evonorm_plugins.metrics.weights import file_sha256

    ground_truth = args.gt or args.val_json
    scores = {task: numbers["all"] for task, numbers in results.items()}
    record = {
        "kind": "ap",
        "name": args.name or (model or {}).get("norm") or args.dt,
        "ap_percent": scores,
        "runs": [{"scores": scores}],
        "protocol": {
            "unit": "percent",
            "iou": list(results),
            "iou_thresholds": "0.50:0.05:0.95",
            "recall_thresholds": 101,
            "max_dets": args.max_dets,
            "mask_areas": "mask" if args.mask_areas or model else "box of the detection",
            "annotation_id_0": "match" if args.renumber_ids else "no match",
            "n_images": len(data.images),
            "n_objects": len(data.objects),
            "n_categories": len(data.categories),
            "ground_truth_sha256": file_sha256(ground_truth),
            "inference": model["inference"] if model else None,
        },
        "input": {"ground_truth": ground_truth, "detections": args.dt, "model": model}
        | {"n_detections": len(data.found), "evaluator": pick_evaluator(args.evaluator)},
        "warnings": warnings,
        "versions": versions("ap"),
        "command": args.command_line,
    }
    if args.per_category:
        record["ap_percent_per_category"] = {t: r["categories"] for t, r in results.items()}
    return record


def _lines(record):
    scores = record["ap_percent"]
    numbers = list(next(iter(scores.values())))
    rows = [["percent", *numbers]]
    rows += [[task, *(_cell(v) for v in values.values())] for task, values in scores.items()]
    for task, categories in record.get("ap_percent_per_category", {}).items():
        rows.append([""] * len(rows[0]))
        rows += [[f"{task} {c}", *(_cell(v) for v in values.values())]
                 for c, values in categories.items()]  # fmt: skip
    p = record["protocol"]
    return [
        aligned(rows),
        "",
        f"protocol: {p['n_images']} images, {p['n_objects']} objects, "
        f"{record['input']['n_detections']} detections, at most {p['max_dets'][-1]} an image and "
        f"category, by {record['input']['evaluator']}",
    ]


def _cell(value):
    return "-" if value is None else f"{value:.3f}"
