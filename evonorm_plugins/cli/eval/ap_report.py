"""The record of ``evonorm eval ap``, and how it is shown."""

import math

from evonorm_plugins.text_table import aligned


def record_of(args, results, data, model, warnings):
    """What ``--json`` prints and ``--out`` keeps.

    Args:
        results: ``{task: ApResult}``.
        data: :class:`~evonorm_plugins.coco.score.CocoData`.
        model: description of the model that found the detections, or None.
    """
    from evonorm_plugins.metrics.ap import pick_evaluator
    from evonorm_plugins.metrics.protocol import versions
    from evonorm_plugins.metrics.weights import file_sha256

    ground_truth = args.gt or args.val_json
    scores = {task: _percent(result.summary()) for task, result in results.items()}
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
        | {
            "n_detections": len(data.found),
            "evaluator": pick_evaluator(args.evaluator, errors=args.errors),
        },
        "warnings": warnings,
        "versions": versions("ap"),
        "command": args.command_line,
    }
    if args.per_category:
        record["ap_percent_per_category"] = {
            task: _by_ap({c: _percent(result.summary(k)) for k, c in enumerate(data.categories)})
            for task, result in results.items()
        }
    if args.errors:
        record["errors"] = {
            task: {
                "counts": result.errors.counts,
                "ap50_percent_lost": _percent(result.errors.costs),
            }
            for task, result in results.items()
        }
    if args.plot:
        record["curves"] = _curves(results)
    return record


def lines_of(record):
    """The record as lines of tables."""
    scores = record["ap_percent"]
    header = ["percent", *next(iter(scores.values()))]
    lines = [aligned([header, *(_row(task, numbers) for task, numbers in scores.items())]), ""]
    for task, categories in record.get("ap_percent_per_category", {}).items():
        rows = (_row(name, numbers) for name, numbers in categories.items())
        lines += [aligned([[f"{task}, by AP", *header[1:]], *rows]), ""]
    for task, errors in record.get("errors", {}).items():
        lines += [aligned(_error_rows(task, errors)), ""]
    p = record["protocol"]
    lines.append(
        f"protocol: {p['n_images']} images, {p['n_objects']} objects, "
        f"{record['input']['n_detections']} detections, at most {p['max_dets'][-1]} an image and "
        f"category, by {record['input']['evaluator']}"
    )
    return lines


def _by_ap(categories):
    """Best first; last those without ground truth, which have no AP."""
    return dict(
        sorted(
            categories.items(),
            key=lambda item: -math.inf if item[1]["AP"] is None else item[1]["AP"],
            reverse=True,
        )
    )


def _curves(results):
    """``{"recall": [...], task: {IoU: precision at each recall}}``, what ``--plot`` draws."""
    from evonorm_plugins.metrics.ap import IOU_THRESHOLDS, RECALL_THRESHOLDS
    from evonorm_plugins.metrics.ap_plot import mean_curves

    curves = {"recall": RECALL_THRESHOLDS.tolist()}
    for task, result in results.items():
        precision = mean_curves(result)
        curves[task] = None
        if precision is not None:
            of_iou = zip(IOU_THRESHOLDS, precision.tolist(), strict=True)
            curves[task] = {f"{iou:.2f}": values for iou, values in of_iou}
    return curves


def _error_rows(task, errors):
    counts, lost = errors["counts"], errors["ap50_percent_lost"]
    rows = [[f"{task} errors", "number", "AP50 lost"]]
    return rows + [[kind, str(counts.get(kind, "")), _cell(value)] for kind, value in lost.items()]


def _percent(numbers):
    return {name: None if value is None else value * 100 for name, value in numbers.items()}


def _row(name, numbers):
    return [name, *(_cell(value) for value in numbers.values())]


def _cell(value):
    return "-" if value is None else f"{value:.3f}"
