#!/usr/bin/env python
"""Write the N images of a COCO-format set whose smallest object is largest, as a set of its own.

For trying whether a model can memorise a handful of images: tiny objects would only measure the
resolution. Images without instances or with crowds are left out, and so are the categories that
have no instances then.

example:
  tools/coco_subset.py instances_train2017.json memorise8.json --images 8
"""

import argparse
import json
import math
import sys
from collections import defaultdict

from evonorm_plugins.coco.check import check_values
from evonorm_plugins.coco.read import read_json, read_lists
from evonorm_plugins.coco.train import ANNOTATION, IMAGE
from evonorm_plugins.errors import ConfigError, run_command
from evonorm_plugins.files import check_output, replacing


def coco_subset(content, images):
    """``content`` (a parsed annotation file) reduced to ``images`` images.

    An object's size is the square root of its box relative to that of the image.

    Raises:
        ConfigError: there are not as many images to choose from.
    """
    size = {image["id"]: image["width"] * image["height"] for image in content["images"]}
    smallest = defaultdict(lambda: math.inf)
    crowds = set()
    for annotation in content["annotations"]:
        image = annotation["image_id"]
        _, _, width, height = annotation["bbox"]
        smallest[image] = min(smallest[image], math.sqrt(width * height / size[image]))
        if annotation["iscrowd"]:
            crowds.add(image)
    ranked = sorted(((-s, image) for image, s in smallest.items() if image not in crowds))
    if not 1 <= images <= len(ranked):
        raise ConfigError(f"--images {images}: there are {len(ranked)} to choose from")
    chosen = {image for _, image in ranked[:images]}
    annotations = [a for a in content["annotations"] if a["image_id"] in chosen]
    present = {a["category_id"] for a in annotations}
    return {
        **content,
        "images": [image for image in content["images"] if image["id"] in chosen],
        "annotations": annotations,
        "categories": [c for c in content["categories"] if c["id"] in present],
    }


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="annotation file")
    parser.add_argument("target", help="annotation file to write")
    parser.add_argument("--images", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace the target if it is there")
    args = parser.parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args):
    check_output(args.target, name="target", inputs=[args.source], force=args.force)
    content = read_json(args.source, "annotation file")
    images, annotations, _ = read_lists(content, args.source, "choose from")
    sizes = {key: IMAGE[key] for key in ("id", "width", "height")}
    check_values(images, "image", args.source, sizes)
    keys = {key: ANNOTATION[key] for key in ("image_id", "category_id", "bbox", "iscrowd")}
    check_values(annotations, "annotation", args.source, keys)
    subset = coco_subset(content, args.images)
    with replacing(args.target) as partial:
        partial.write_text(json.dumps(subset), encoding="utf-8")
    print(f"{args.target}: {len(subset['images'])} images, {len(subset['annotations'])} objects")


if __name__ == "__main__":
    sys.exit(main())
