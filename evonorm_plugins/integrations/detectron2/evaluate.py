"""Detections of a Detectron2 model, for ``evonorm eval ap --config-file``."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from tqdm import tqdm

from evonorm_plugins.errors import ConfigError
from evonorm_plugins.files import replacing
from evonorm_plugins.integrations.detectron2.config import check_config, load_config
from evonorm_plugins.integrations.detectron2.data import set_datasets
from evonorm_plugins.integrations.detectron2.pictures import picture_predictions
from evonorm_plugins.integrations.detectron2.processes import original_errors
from evonorm_plugins.integrations.detectron2.proposals import check_proposals
from evonorm_plugins.integrations.detectron2.tasks import outputs_of
from evonorm_plugins.integrations.detectron2.trainer import Trainer
from evonorm_plugins.integrations.detectron2.weights import SafeCheckpointer, local_file
from evonorm_plugins.integrations.quiet import silence_libraries
from evonorm_plugins.metrics.features import progress_bar
from evonorm_plugins.metrics.weights import file_sha256

Found = tuple[list[dict], dict[str, Any], Exception | None]


def detect(args: argparse.Namespace, ground_truth: Any) -> Found:
    """Run a model on a validation set.

    Args:
        args: ``config_file``, ``weights``, ``val_json``, ``val_images``, ``opts``, ``save_dt``,
            ``grid``, ``quiet``, ``trust_config`` and ``trust_weights`` of the command line.
        ground_truth: what is in ``val_json``, parsed.

    Returns:
        ``(detections, description, failure)``: a list in COCO's result format, what belongs to the
        record, and why the picture could not be drawn, if it could not.

    Raises:
        InputError: what is wrong with the input, before the model runs; or an image that cannot be
            read.
    """
    silence_libraries()
    before = set(DatasetCatalog.list())
    try:
        # Detectron2 and pycocotools print; stdout is for the result.
        with contextlib.redirect_stdout(sys.stderr), original_errors():
            return _detect(args, ground_truth)
    finally:
        for name in set(DatasetCatalog.list()) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _detect(args: argparse.Namespace, ground_truth: Any) -> Found:
    if len(args.opts) % 2:
        raise ConfigError(f"--opts come in pairs, KEY VALUE; got {' '.join(args.opts)}")
    opts = ["MODEL.WEIGHTS", args.weights, *args.opts]
    cfg, notes = load_config(args.config_file, opts, trust=args.trust_config)
    architecture = cfg.MODEL.META_ARCHITECTURE
    if "instances" not in (outputs_of(cfg) or ("instances",)):
        raise ConfigError(
            f"a MODEL.META_ARCHITECTURE {architecture} finds no objects with boxes to score"
        )
    options = {"every_category": False, "content": ground_truth}
    set_datasets(cfg, "val", args.val_json, args.val_images, **options)
    check_config(cfg, training=False)
    check_proposals(cfg, training=False, trust=args.trust_weights)
    description = _description(cfg, args)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    model = Trainer.build_model(cfg)
    SafeCheckpointer(model, trust=args.trust_weights).load(cfg.MODEL.WEIGHTS)
    (dataset,) = cfg.DATASETS.TEST
    loader = Trainer.build_test_loader(cfg, dataset)
    bar = progress_bar(args.quiet)("detecting", len(loader))
    with bar:
        detections = inference_on_dataset(model, loader, _Collector(dataset, bar))
    if args.save_dt:
        with replacing(args.save_dt) as partial, open(partial, "w", encoding="utf-8") as file:
            json.dump(detections, file)
    failure = None
    if args.grid:
        try:
            picture_predictions(cfg, model, dataset, Path(args.grid), images=6)
        except Exception as error:  # the caller scores the detections first
            failure = error
    return detections, description, failure


class _Collector(DatasetEvaluator):
    """Detections of all images, with the ids of the set's categories."""

    def __init__(self, dataset: str, bar: tqdm) -> None:
        self.category_ids = {
            index: category
            for category, index in MetadataCatalog.get(
                dataset
            ).thing_dataset_id_to_contiguous_id.items()
        }
        self.bar = bar
        self.found: list[dict] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            entries = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
            for entry in entries:
                if entry["category_id"] not in self.category_ids:
                    raise ConfigError(
                        f"the model finds class {entry['category_id']}, the set has "
                        f"{len(self.category_ids)} categories: weights and NUM_CLASSES are of "
                        "another set"
                    )
                entry["category_id"] = self.category_ids[entry["category_id"]]
            self.found += entries
        self.bar.update(len(inputs))

    def evaluate(self) -> list[dict]:
        return self.found


def _description(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "config_file": args.config_file,
        "weights": args.weights,
        "weights_sha256": file_sha256(local_file(args.weights)),
        "norm": cfg.MODEL.RESNETS.NORM,
        "masks": cfg.MODEL.MASK_ON,
        "inference": {
            "short_side_px": cfg.INPUT.MIN_SIZE_TEST,
            "long_side_px": cfg.INPUT.MAX_SIZE_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        },
    }
