"""AP of boxes and of masks: seconds, memory and agreement of `evonorm eval ap` and other tools.

Every tool is a process of its own, from reading the files to the 12 numbers, on a set that is
drawn: 480x640 pixels, 80 categories, 7.2 objects and some 11 detections an image, masks of 16
points whose outlines are shaken. The tools take turns, in an order that is drawn anew for each
round; what is reported are medians. "difference" is the largest one of the 12 numbers, which are
fractions, from pycocotools'.
"""

import importlib.metadata
import json
import math
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from evonorm_plugins.cli.types import count
from evonorm_plugins.errors import InputError, RunError
from evonorm_plugins.text_table import aligned

EXAMPLES = """
examples:
  tools/benchmark.py ap
  tools/benchmark.py ap --images 500 --rounds 1 --tools evonorm pycocotools
"""

HEIGHT, WIDTH, CATEGORIES = 480, 640, 80
# Packages with pycocotools' interface, and what to import from them.
IMPORTS = {
    "pycocotools": "from pycocotools.coco import COCO; from pycocotools.cocoeval import COCOeval",
    "faster-coco-eval": "from faster_coco_eval import COCO, COCOeval_faster as COCOeval",
    "hotcoco": "from hotcoco import COCO, COCOeval",
    "ultrafast-pycocotools": "from ultrafast_pycocotools import COCO, COCOeval",
}
SCRIPT = """
import json, sys
{imports}
truth = COCO(sys.argv[1])
evaluation = COCOeval(truth, truth.loadRes(sys.argv[2]), sys.argv[3])
evaluation.evaluate(); evaluation.accumulate(); evaluation.summarize()
print(json.dumps([float(v) for v in evaluation.stats[:12]]))
"""
TASKS = {"bbox": "boxes", "segm": "masks"}


def add_arguments(parser):
    add = parser.add_argument
    add("--images", type=count, default=5000, help="(default: %(default)s)")
    add("--rounds", type=count, default=3, help="(default: %(default)s)")
    add("--folder", help="of the set, which is drawn and kept where there is none yet")
    add(
        "--tools",
        nargs="+",
        choices=("evonorm", *IMPORTS),
        help="(default: evonorm, and those of the others that are installed)",
    )
    add("--json", action="store_true", help="JSON on stdout instead of a table")


def run(args):
    tools = args.tools or ["evonorm", *(name for name in IMPORTS if version(name))]
    for name in tools:
        if not version(name):
            raise InputError(f"--tools {name}: it is not installed")
    with tempfile.TemporaryDirectory() as folder:
        files, counts = the_set(Path(args.folder or folder), args.images)
        runs = [
            {"tool": tool, "task": task, **measure(tool, task, files, folder)}
            for _ in range(args.rounds)
            for task in TASKS
            for tool in random.sample(tools, len(tools))
        ]
    if args.json:
        print(json.dumps({"set": counts, "runs": runs}, indent=2))
        return
    print("{images} images, {objects} objects, {detections} detections\n".format(**counts))
    print(aligned(list(rows(tools, runs))))


def version(tool):
    try:
        return importlib.metadata.version("evonorm-plugins" if tool == "evonorm" else tool)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure(tool, task, files, folder):
    """``{"seconds", "MiB", "numbers"}`` of one process."""
    truth, found = files["objects"], files[task]
    command = ["-c", SCRIPT.format(imports=IMPORTS.get(tool)), truth, found, task]
    if tool == "evonorm":
        command = ["-m", "evonorm_plugins.cli", "eval", "ap", "--gt", truth, "--dt", found]
        command += ["--iou", task, "--json"]
    output = os.path.join(folder, "output")
    with open(output, "w") as file:
        begin = time.perf_counter()
        process = os.posix_spawn(
            sys.executable,
            [sys.executable, *command],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 1)],
        )
        _, status, usage = os.wait4(process, 0)
        seconds = time.perf_counter() - begin
    if status:
        raise RunError(f"{tool} failed on {TASKS[task]}")
    text = Path(output).read_text()
    if tool == "evonorm":
        numbers = [value / 100 for value in json.loads(text)["ap_percent"][task].values()]
    else:
        numbers = json.loads(text.splitlines()[-1])
    return {"seconds": seconds, "MiB": usage.ru_maxrss / 1024, "numbers": numbers}


def rows(tools, runs):
    """A row for each tool: medians of seconds and MiB of both tasks."""
    units = ("s", "MiB", "difference")
    yield ["tool", "version", *(f"{name} {unit}" for name in TASKS.values() for unit in units)]
    for tool in tools:
        cells = [tool, version(tool)]
        for task in TASKS:
            mine, theirs = (
                [one for one in runs if (one["tool"], one["task"]) == (name, task)]
                for name in (tool, "pycocotools")
            )
            cells.append(f"{statistics.median(one['seconds'] for one in mine):.2f}")
            cells.append(f"{statistics.median(one['MiB'] for one in mine):.0f}")
            pairs = zip(mine[0]["numbers"], theirs[0]["numbers"], strict=True) if theirs else ()
            cells.append(f"{max((abs(a - b) for a, b in pairs), default=math.nan):.0e}")
        yield cells


def the_set(folder, images):
    """``({"objects", "bbox", "segm": path}, counts)``: ground truth, boxes found, masks found."""
    files = {name: str(folder / f"{name}.json") for name in ("objects", "bbox", "segm")}
    counts = folder / "counts.json"
    if not counts.is_file():
        # In a process of its own: what this one holds counts as memory of those that it starts.
        drawing = multiprocessing.get_context("spawn").Process(
            target=write_set, args=(files, counts, images)
        )
        drawing.start()
        drawing.join()
        if drawing.exitcode:
            raise RunError("the set could not be drawn")
    return files, json.loads(counts.read_text())


def write_set(files, counts, images):
    counts.parent.mkdir(parents=True, exist_ok=True)
    contents = draw_set(images)
    for path, content in zip(files.values(), contents, strict=True):
        Path(path).write_text(json.dumps(content))
    objects, detections = len(contents[0]["annotations"]), len(contents[1])
    counts.write_text(json.dumps({"images": images, "objects": objects, "detections": detections}))


def draw_set(images, seed=0):
    """Ground truth, boxes found and masks found, as they are written."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": k + 1, "height": HEIGHT, "width": WIDTH} for k in range(images)],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(CATEGORIES)],
        "annotations": [],
    }
    found = []
    for image in truth["images"]:
        for _ in range(rng.poisson(7.2)):
            entry = {"image_id": image["id"], "category_id": int(rng.integers(1, CATEGORIES + 1))}
            box = _box(rng)
            changes = {"id": len(truth["annotations"]) + 1, "area": 0.7 * box[2] * box[3]}
            crowd = int(rng.random() < 0.01)
            mask = _polygon(rng, box) if not crowd else _rle(_polygon(rng, box))
            truth["annotations"].append(
                {**entry, **changes, "bbox": box, "iscrowd": crowd, "segmentation": mask}
            )
            found += [_found(rng, entry, _moved(rng, box)) for _ in range(rng.choice([0, 1, 1, 2]))]
        for _ in range(rng.poisson(3.6)):
            entry = {"image_id": image["id"], "category_id": int(rng.integers(1, CATEGORIES + 1))}
            found.append(_found(rng, entry, _box(rng)))
    boxes = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in found]
    return truth, boxes, found


def _found(rng, entry, box):
    score = round(float(rng.uniform(0.05, 1)), 3)
    return {**entry, "bbox": box, "score": score, "segmentation": _rle(_polygon(rng, box))}


def _box(rng):
    width, height = rng.uniform(0.5, 1.5, 2) * rng.choice([20, 60, 180])
    x, y = rng.uniform(0, [WIDTH - width, HEIGHT - height])
    return [round(float(v), 2) for v in (x, y, width, height)]


def _moved(rng, box):
    moved = box + rng.normal(0, rng.choice([0.0, 0.03, 0.15]), 4) * np.array(box)[[2, 3, 2, 3]]
    return [round(float(v), 2) for v in np.maximum(moved, [0, 0, 2, 2])]


def _polygon(rng, box):
    x, y, width, height = box
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.8, 1, (16, 2))
    points = [x, y] + np.array([width, height]) / 2 * (1 + points)
    return [[round(float(v), 2) for v in points.ravel()]]


def _rle(polygon):
    from pycocotools import mask

    rle = mask.merge(mask.frPyObjects(polygon, HEIGHT, WIDTH))
    return {"size": rle["size"], "counts": rle["counts"].decode()}
