"""Small sets of every kind that Detectron2 evaluates, written and registered for a test."""

import json

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    load_sem_seg,
    register_coco_instances,
    register_coco_panoptic_separated,
    register_lvis_instances,
    register_pascal_voc,
)
from PIL import Image

SIZE = 64
# x, y, width, height of the object of every image.
BOXES = [(8, 12, 28, 32), (20, 8, 36, 40), (4, 24, 40, 30)]
KEYPOINTS = ["nose", "left_ear", "right_ear"]


def write_images(folder, suffix=".jpg"):
    """A bright box on a dark ground in every image; paths by id."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    paths = {}
    for k, (x, y, w, h) in enumerate(BOXES, 1):
        image = generator.integers(0, 80, (SIZE, SIZE, 3), dtype=np.uint8)
        image[y : y + h, x : x + w] += 150
        paths[k] = folder / f"{k:06}{suffix}"
        Image.fromarray(image).save(paths[k])
    return paths


def write_labels(folder, values):
    """Label images of two numbers: on the ground, and on the object."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, (x, y, w, h) in enumerate(BOXES, 1):
        labels = np.full((SIZE, SIZE), values[0], np.uint8)
        labels[y : y + h, x : x + w] = values[1]
        Image.fromarray(labels).save(folder / f"{k:06}.png")


def coco_content(keypoints=False, annotations=True):
    category = {"id": 7, "name": "box"}
    if keypoints:
        category["keypoints"] = KEYPOINTS
    content = {"images": [], "annotations": [], "categories": [category]}
    for k, (x, y, w, h) in enumerate(BOXES, 1):
        name = f"{k:06}.jpg"
        content["images"].append({"id": k, "file_name": name, "height": SIZE, "width": SIZE})
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        entry = {"id": k, "image_id": k, "category_id": 7, "bbox": [x, y, w, h], "area": w * h}
        entry |= {"iscrowd": 0, "segmentation": [polygon]}
        if keypoints:
            points = [x + w // 2, y + h // 2, 2, x + 2, y + 2, 2, x + w - 2, y + 2, 2]
            entry |= {"keypoints": points, "num_keypoints": 3}
        content["annotations"].append(entry)
    if not annotations:
        del content["annotations"]
    return content


def write_coco(folder, **options):
    """``(annotation file, folder of images)`` in COCO's format."""
    write_images(folder / "images")
    path = folder / "coco.json"
    path.write_text(json.dumps(coco_content(**options)))
    return path, folder / "images"


def register_coco(folder, name="small_coco", metadata=None, **options):
    path, images = write_coco(folder, **options)
    register_coco_instances(name, metadata or {}, str(path), str(images))
    return name


def register_semantic(folder, name="small_semantic", classes=("ground", "box")):
    write_images(folder / "images")
    write_labels(folder / "labels", (0, 1))
    images, labels = str(folder / "images"), str(folder / "labels")
    DatasetCatalog.register(name, lambda: load_sem_seg(labels, images))
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes), image_root=images, sem_seg_root=labels,
        evaluator_type="sem_seg", ignore_label=255,
    )  # fmt: skip
    return name


def register_panoptic(folder):
    """Label 0 of the label images is all things, as in COCO's; category 9 is the ground."""
    path, images = write_coco(folder)
    write_labels(folder / "stuff", (1, 0))
    content = coco_content()
    content["categories"] = [
        {"id": 7, "name": "box", "isthing": 1},
        {"id": 9, "name": "ground", "isthing": 0},
    ]
    segments = folder / "panoptic"
    segments.mkdir()
    for entry, (x, y, w, h) in zip(content["annotations"], BOXES, strict=True):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        image[..., 0] = 1
        image[y : y + h, x : x + w, 0] = 2
        entry.clear()
        k = BOXES.index((x, y, w, h)) + 1
        Image.fromarray(image).save(segments / f"{k:06}.png")
        entry |= {"image_id": k, "file_name": f"{k:06}.png"}
        rest = {"iscrowd": 0, "bbox": [x, y, w, h]}
        entry["segments_info"] = [
            {"id": 1, "category_id": 9, "area": SIZE**2 - w * h, **rest},
            {"id": 2, "category_id": 7, "area": w * h, **rest},
        ]
    (folder / "panoptic.json").write_text(json.dumps(content))
    metadata = {
        "thing_classes": ["box"],
        "stuff_classes": ["things", "ground"],
        "thing_dataset_id_to_contiguous_id": {7: 0},
        "stuff_dataset_id_to_contiguous_id": {0: 0, 9: 1},
    }
    register_coco_panoptic_separated(
        "small_panoptic", metadata, str(images), str(segments), str(folder / "panoptic.json"),
        str(folder / "stuff"), str(path),
    )  # fmt: skip
    return "small_panoptic_separated"


def register_voc(folder):
    paths = write_images(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("".join(f"{p.stem}\n" for p in paths.values()))
    for path, (x, y, w, h) in zip(paths.values(), BOXES, strict=True):
        box = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
        sides = "".join(f"<{k}>{v}</{k}>" for k, v in box.items())
        (folder / "Annotations" / f"{path.stem}.xml").write_text(
            f"<annotation><size><width>{SIZE}</width><height>{SIZE}</height></size><object>"
            "<name>box</name><pose>Frontal</pose><truncated>0</truncated><difficult>0</difficult>"
            f"<bndbox>{sides}</bndbox></object></annotation>"
        )
    register_pascal_voc("small_voc", str(folder), "train", 2012, class_names=("box",))
    MetadataCatalog.get("small_voc").evaluator_type = "pascal_voc"
    return "small_voc"


def register_lvis(folder):
    """Detectron2 gives it the 1203 categories of LVIS v1, by its name."""
    write_images(folder / "images")
    content = coco_content()
    for image in content["images"]:
        image["coco_url"] = f"http://host/images/{image['file_name']}"
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    content["categories"] = [
        {"id": k, "name": f"category {k}", "frequency": "rcf"[k % 3]} for k in range(1, 1204)
    ]
    path = folder / "lvis.json"
    path.write_text(json.dumps(content))
    register_lvis_instances("small_lvis_v1", {}, str(path), f"{folder}/")
    return "small_lvis_v1"


def register_cityscapes(folder, task):
    """``task``: "instance" or "sem_seg"; the object is a car on a road."""
    from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
    from detectron2.data.datasets.cityscapes import (
        load_cityscapes_instances,
        load_cityscapes_semantic,
    )

    images, truth = folder / "leftImg8bit", folder / "gtFine"
    paths = write_images(images / "city", "_leftImg8bit.png")
    (truth / "city").mkdir(parents=True)
    for path, (x, y, w, h) in zip(paths.values(), BOXES, strict=True):
        stem = path.name.removesuffix("_leftImg8bit.png")
        path.rename(path.with_name(f"city_{stem}_000019_leftImg8bit.png"))
        polygon = [[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]]
        frame = {"imgHeight": SIZE, "imgWidth": SIZE}
        frame["objects"] = [{"label": "car", "polygon": polygon}]
        base = truth / "city" / f"city_{stem}_000019_gtFine"
        base.with_name(f"{base.name}_polygons.json").write_text(json.dumps(frame))
        # id and training id of road and car; instances are 1000 times the id and on.
        for kind, ground, car in (("labelIds", 7, 26), ("labelTrainIds", 0, 13)):
            labels = np.full((SIZE, SIZE), ground, np.uint8)
            labels[y : y + h, x : x + w] = car
            Image.fromarray(labels).save(base.with_name(f"{base.name}_{kind}.png"))
        instances = np.full((SIZE, SIZE), 7, np.uint16)
        instances[y : y + h, x : x + w] = 26000
        Image.fromarray(instances).save(base.with_name(f"{base.name}_instanceIds.png"))
    name = f"small_cityscapes_{task}"
    if task == "instance":
        load = lambda: load_cityscapes_instances(str(images), str(truth))  # noqa: E731
    else:
        load = lambda: load_cityscapes_semantic(str(images), str(truth))  # noqa: E731
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        image_dir=str(images), gt_dir=str(truth), evaluator_type=f"cityscapes_{task}",
        ignore_label=255, **_get_builtin_metadata("cityscapes"),
    )  # fmt: skip
    return name
