#!/usr/bin/env python
"""Write a COCO-format set of coloured shapes with exact masks.

Everything follows from the seed: the same values give byte-identical files, and image k of a split
is the same however many images are asked for.

    python tools/make_shapes_dataset.py output/shapes
    python tools/make_shapes_dataset.py output/shapes --train 1000 --val 100 --size 256 --seed 1

writes output/shapes/{train,val}/000001.png ... and output/shapes/{train,val}.json (the "instances"
format of COCO), with the values it was made from in output/shapes/parameters.json.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from evonorm_plugins.errors import ConfigError, run_command
from evonorm_plugins.files import new_folder

CLASSES = ("circle", "square", "triangle", "star")
CLASS_COLOURS = ((220, 60, 50), (60, 110, 220), (60, 180, 80), (225, 190, 50))
MIN_SIZE = 32  # pixels; below it the smallest shapes look alike
MIN_VISIBLE = 0.4  # of a shape's own area; less may not tell its class
FORMAT = 1  # raise when the same parameters give other files than before


def make_shapes_dataset(
    out_dir, train=200, val=50, size=128, max_shapes=4, seed=0, class_colours=False
):
    """Write the set, or do nothing where the same one is already there.

    Args:
        out_dir: folder to write; appears only when complete.
        train, val: number of images in each split.
        size: width and height of the images in pixels, at least 32.
        max_shapes: an image shows 1 to ``max_shapes`` shapes; later ones lie over earlier ones.
        seed: a whole number, 0 or more.
        class_colours: shapes of a class have about the same colour, which is learnt sooner; without
            it the outline alone tells the class.

    Returns:
        dict of paths: ``train_json``, ``train_images``, ``val_json``, ``val_images``.

    Raises:
        ConfigError: a value out of range, or ``out_dir`` holds something else.
    """
    parameters = {
        "format": FORMAT,
        "train": _whole_number("train", train, 1),
        "val": _whole_number("val", val, 1),
        "size": _whole_number("size", size, MIN_SIZE),
        "max_shapes": _whole_number("max_shapes", max_shapes, 1),
        "seed": _whole_number("seed", seed, 0),
        "class_colours": bool(class_colours),
    }
    out = Path(out_dir).resolve()
    if not _is_made(out, parameters):
        with new_folder(out) as new:
            for split, name in enumerate(("train", "val")):
                _write_split(new, name, split, parameters)
            _write_json(new / "parameters.json", parameters)
    return {
        "train_json": out / "train.json",
        "train_images": out / "train",
        "val_json": out / "val.json",
        "val_images": out / "val",
    }


def _whole_number(name, value, least):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _is_made(out, parameters):
    """Whether ``out`` holds this set already; ConfigError where it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder that does not exist yet")
    if not any(out.iterdir()):
        return False
    try:
        there = json.loads((out / "parameters.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict):
        raise ConfigError(
            f"{out} is not empty and no set made by this tool (it has no readable "
            "parameters.json); give another folder"
        )
    different = [
        f"{key} {there.get(key)} instead of {value}"
        for key, value in parameters.items()
        if there.get(key) != value
    ]
    if different:
        raise ConfigError(
            f"{out} holds a set made with {', '.join(different)}; give another folder or remove it"
        )
    for name in ("train", "val"):
        found = sum(1 for _ in (out / name).glob("*.png"))
        if found != parameters[name] or not (out / f"{name}.json").is_file():
            raise ConfigError(
                f"{out} was changed since it was made: {found} of {parameters[name]} images in "
                f"{name}/, {name}.json {'present' if (out / f'{name}.json').is_file() else 'gone'};"
                " remove it or give another folder"
            )
    return True


def _write_split(root, name, split, parameters):
    (root / name).mkdir()
    images, annotations = [], []
    size, count = parameters["size"], parameters[name]
    for k in range(count):
        # A generator of its own for every image, so that it does not depend on the others.
        rng = np.random.default_rng([parameters["seed"], split, k])
        pixels, shapes = draw_image(
            rng, size, parameters["max_shapes"], parameters["class_colours"]
        )
        image_id = k + 1
        file_name = f"{image_id:06d}.png"
        Image.fromarray(pixels).save(root / name / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": size, "height": size})
        for category, mask in shapes:
            # Ids count from 1: pycocotools takes a match with annotation 0 for none.
            annotations.append(_annotation(len(annotations) + 1, image_id, category + 1, mask))
        if (k + 1) % 100 == 0 or k + 1 == count:
            print(f"{name}: {k + 1} of {count} images", file=sys.stderr)
    categories = [
        {"id": k, "name": label, "supercategory": "shape"} for k, label in enumerate(CLASSES, 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _write_json(root / f"{name}.json", content)


def _write_json(path, content):
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _annotation(annotation_id, image_id, category_id, mask):
    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    # Floats throughout: resizing polygons and boxes of whole numbers in place rounds them down.
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": [[float(c) for point in p for c in point] for p in mask_polygons(mask)],
        "bbox": [float(v) for v in (x, y, xs.max() + 1 - x, ys.max() + 1 - y)],
        "area": float(mask.sum()),
        "iscrowd": 0,
    }


def draw_image(rng, size, max_shapes, class_colours=False):
    """One image: pixels (size, size, 3) uint8, and [(index into CLASSES, visible mask), ...].

    The masks are boolean, (size, size), do not overlap, and hold exactly the pixels painted.
    """
    placed = []
    for _ in range(rng.integers(1, max_shapes + 1)):
        category = int(rng.integers(len(CLASSES)))
        placed.append((category, *_place_shape(rng, CLASSES[category], size)))

    # From the top down: a shape that shows too little is left out, and then hides nothing.
    shapes, covered = [], np.zeros((size, size), bool)
    for category, mask, area in reversed(placed):
        visible = mask & ~covered
        if visible.sum() >= MIN_VISIBLE * area:
            shapes.append((category, visible))
            covered |= mask
    shapes.reverse()

    pixels, base = _background(rng, size)
    colours = [base]
    for category, mask in shapes:
        if class_colours:
            colours.append(CLASS_COLOURS[category] + rng.uniform(-25, 25, 3))
        else:
            # Any colour for any class, only not that of the background or of another shape here.
            colours.append(_other_colour(rng, colours))
        pixels[mask] = colours[-1] + _ramp(rng, size)[mask, None] * rng.uniform(10, 40)
    pixels += rng.normal(0, 8, pixels.shape)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), shapes


def _place_shape(rng, label, size):
    """A shape at random scale, angle and place: its mask within the image, and its whole area."""
    # The radius of the circle of the same area: classes do not differ in size.
    least, most = max(5, 0.08 * size), max(8, 0.22 * size)
    radius = np.exp(rng.uniform(np.log(least), np.log(most)))
    angle = rng.uniform(0, 2 * np.pi)
    # At least half a radius from the border, so that the greater part is in the image.
    centre = rng.uniform(radius / 2, size - radius / 2, 2)
    y, x = np.mgrid[:size, :size] + 0.5 - centre[::-1, None, None]  # pixel centres
    if label == "circle":
        return x**2 + y**2 <= radius**2, np.pi * radius**2
    corners = _corners(label) @ [
        [np.cos(angle), np.sin(angle)],
        [-np.sin(angle), np.cos(angle)],
    ]
    return _inside(corners * radius, x, y), np.pi * radius**2


def _corners(label):
    """Corners (n, 2) of a shape of area pi around the origin."""
    radii = {"square": [1] * 4, "triangle": [1] * 3, "star": [1, 0.45] * 5}[label]
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    corners = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array(radii)[:, None]
    x, y = corners.T
    area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
    return corners * np.sqrt(np.pi / area)


def _inside(corners, x, y):
    """Which points lie in a polygon: those from which a ray crosses its edges an odd number of
    times."""
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def _background(rng, size):
    """Clouds and stripes around a base colour: float pixels (size, size, 3), base (3,)."""
    base = rng.uniform(30, 225, 3)
    cells = int(rng.integers(3, 9))
    coarse = rng.normal(0, 22, (3, cells, cells)).astype(np.float32)
    clouds = [Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC) for c in coarse]
    stripes = np.sin(_ramp(rng, size) * rng.uniform(5, 40)) * rng.uniform(0, 20)
    return base + np.stack([np.asarray(c, float) for c in clouds], -1) + stripes[..., None], base


def _ramp(rng, size):
    """A linear ramp from about -1 to 1 across the image in a random direction, (size, size)."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] * (2 / size) - 1
    return np.cos(angle) * x + np.sin(angle) * y


def _other_colour(rng, colours, tries=20):
    """A colour far from all of ``colours``: the first far enough, else the farthest tried."""
    candidates = rng.uniform(20, 235, (tries, 3))
    distances = np.linalg.norm(candidates[:, None] - np.array(colours), axis=2).min(1)
    enough = np.flatnonzero(distances >= 90)
    return candidates[enough[0] if len(enough) else distances.argmax()]


def mask_polygons(mask):
    """Polygons along the pixel edges of a boolean mask (h, w), as lists of (x, y) corners.

    They do not overlap and together cover exactly the mask; none has a hole, which COCO's polygons
    cannot express: a mask with holes is cut in two through each.
    """
    loops = _trace(mask)
    hole = next((loop for loop in loops if _signed_area(loop) < 0), None)
    if hole is None:
        return loops
    xs = [x for x, _ in hole]
    cut = (min(xs) + max(xs)) // 2
    right = [[(x + cut, y) for x, y in loop] for loop in mask_polygons(mask[:, cut:])]
    return mask_polygons(mask[:, :cut]) + right


def _trace(mask):
    """Closed loops of corners with the mask on their right: clockwise around it, else a hole."""
    padded = np.pad(mask, 1)
    edges = {}  # start corner -> directions of the edges that leave it
    # An edge lies where the neighbour at (dy, dx) is off; its direction and start corner follow.
    for dy, dx, direction, (sx, sy) in (
        (-1, 0, (1, 0), (0, 0)),
        (0, 1, (0, 1), (1, 0)),
        (1, 0, (-1, 0), (1, 1)),
        (0, -1, (0, -1), (0, 1)),
    ):
        neighbour = np.roll(padded, (-dy, -dx), (0, 1))[1:-1, 1:-1]
        for y, x in np.argwhere(mask & ~neighbour).tolist():
            edges.setdefault((x + sx, y + sy), []).append(direction)
    loops = []
    while edges:
        start = corner = next(iter(edges))
        direction, loop = None, []
        while corner != start or not loop:
            leaving = edges[corner]
            # Where two pixels touch at a corner only, turning right stays at the same pixel.
            right = direction and (-direction[1], direction[0])
            new = leaving.pop(leaving.index(right) if right in leaving else 0)
            if not leaving:
                del edges[corner]
            if new != direction:
                loop.append(corner)
            direction = new
            corner = (corner[0] + new[0], corner[1] + new[1])
        loops.append(loop)
    return loops


def _signed_area(loop):
    following = loop[1:] + loop[:1]
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, following, strict=True)) / 2


def main(argv=None):
    description, _, epilog = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", help="folder to write")
    parser.add_argument("--train", type=int, default=200, help="training images (default 200)")
    parser.add_argument("--val", type=int, default=50, help="validation images (default 50)")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default 128)")
    parser.add_argument("--max-shapes", type=int, default=4, help="shapes an image (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument(
        "--class-colours", action="store_true", help="shapes of a class have about the same colour"
    )
    parser.add_argument("--json", action="store_true", help="print the paths as JSON")
    options = vars(parser.parse_args(argv))
    as_json = options.pop("json")
    return run_command(lambda: _run(options, as_json))


def _run(options, as_json):
    existed = Path(options["out_dir"], "parameters.json").exists()
    paths = make_shapes_dataset(**options)
    if existed:
        print(f"{options['out_dir']}: this set is already there, nothing done", file=sys.stderr)
    if as_json:
        print(json.dumps({key: str(path) for key, path in paths.items()}))
    else:
        for key, path in paths.items():
            print(f"{key:13} {path}")


if __name__ == "__main__":
    sys.exit(main())
