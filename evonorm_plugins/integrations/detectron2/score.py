"""Detections of a Detectron2 model, for ``evonorm-eval ap --config-file``."""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from evonorm_plugins.coco.read import read_json
from evonorm_plugins.errors import InputError
from evonorm_plugins.files import replacing
from evonorm_plugins.metrics.features import progress_bar
from evonorm_plugins.metrics.weights import file_sha256


def detect(args):
    """Run a model on a validation set.

    Args:
        args: ``config_file``, ``weights``, ``val_json``, ``val_images``, ``opts``, ``save_dt``,
            ``grid`` and ``quiet`` of the command line.

    Returns:
        ``(detections, description)``: a list in COCO's result format, and what belongs to the
        record.

    Raises:
        InputError: Detectron2 is not installed, or it or this package refuses the input.
    """
    try:
        import detectron2.data
        import yaml

        import evonorm_plugins.integrations.detectron2  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--config-file needs Detectron2, which cannot be imported ({error}); "
            "tools/install_detectron2.py installs it"
        ) from None
    # yacs raises AssertionError for a key that does not exist.
    bad = ValueError, KeyError, FileNotFoundError, AssertionError, yaml.YAMLError
    before = set(detectron2.data.DatasetCatalog.list())
    try:
        # Detectron2 and pycocotools print; stdout is for the result.
        with contextlib.redirect_stdout(sys.stderr):
            return _detect(args)
    except InputError:
        raise
    except bad as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise InputError(str(message)) from error
    finally:
        for name in set(detectron2.data.DatasetCatalog.list()) - before:
            detectron2.data.DatasetCatalog.remove(name)
            detectron2.data.MetadataCatalog.remove(name)


def _detect(args):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.evaluation import inference_on_dataset

    from evonorm_plugins.integrations.detectron2.engine import Trainer
    from evonorm_plugins.integrations.detectron2.report import picture_predictions
    from evonorm_plugins.integrations.detectron2.run_setup import setup

    cfg, notes = setup(_train_net_arguments(args))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    model = Trainer.build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    dataset = cfg.DATASETS.TEST[0]
    loader = Trainer.build_test_loader(cfg, dataset)
    bar = progress_bar(args.quiet)("detecting", len(loader))
    with tempfile.TemporaryDirectory() as folder, bar:
        evaluator = _collector(dataset, folder, bar)
        inference_on_dataset(model, loader, evaluator)
        file = Path(folder, "coco_instances_results.json")
        # Detectron2 writes nothing where nothing was found.
        detections = read_json(file) if file.is_file() else []
        if args.save_dt:
            _save(detections, args.save_dt)
    if args.grid:
        picture_predictions(cfg, model, dataset, Path(args.grid), images=6)
    return detections, _description(cfg, args)


def _train_net_arguments(args):
    return argparse.Namespace(
        config_file=args.config_file,
        opts=["MODEL.WEIGHTS", args.weights, *args.opts],
        resume=False,
        eval_only=True,
        allow_empty_categories=True,
        train_json=None,
        train_images=None,
        val_json=args.val_json,
        val_images=args.val_images,
    )


def _collector(dataset, folder, bar):
    """Detectron2's evaluator, which writes the detections and leaves their scores to us."""
    from detectron2.evaluation import COCOEvaluator

    class Collector(COCOEvaluator):
        def process(self, inputs, outputs):
            super().process(inputs, outputs)
            bar.update(len(inputs))

    evaluator = Collector(dataset, output_dir=folder)
    evaluator._do_evaluation = False
    return evaluator


def _save(detections, path):
    import json

    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        json.dump(detections, file)


def _description(cfg, args):
    return {
        "config_file": args.config_file,
        "weights": args.weights,
        "weights_sha256": file_sha256(args.weights),
        "norm": cfg.MODEL.RESNETS.NORM,
        "masks": cfg.MODEL.MASK_ON,
        "inference": {
            "short_side_px": cfg.INPUT.MIN_SIZE_TEST,
            "long_side_px": cfg.INPUT.MAX_SIZE_TEST,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        },
    }
