#!/usr/bin/env python
"""Train and evaluate any Detectron2 config, with every registered norm-activation as a NORM.

Detectron2's own command line, and:
  --train-json, --train-images, --val-json, --val-images   any dataset in COCO's format
  the learning rate is scaled when SOLVER.IMS_PER_BATCH differs from the config file's
  results.json and predictions.png in OUTPUT_DIR at the end
"""

import sys

EXAMPLES = """
examples:
  train from scratch on 8 GPUs:
    tools/train_net.py --num-gpus 8 --config-file detectron_configs/stock/mask_rcnn_R_50_FPN_EvoNormS0.yaml
  the same with a dataset of your own, 16 images a step:
    tools/train_net.py --num-gpus 8 --config-file ... --train-json train.json --train-images train/ \\
        --val-json val.json --val-images val/ SOLVER.IMS_PER_BATCH 16 MODEL.ROI_HEADS.NUM_CLASSES 4
  go on after an interruption:
    tools/train_net.py --resume --config-file ... OUTPUT_DIR output/run1
  evaluate:
    tools/train_net.py --eval-only --config-file ... MODEL.WEIGHTS output/run1/model_final.pth
  two machines with 8 GPUs each:
    tools/train_net.py --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT ...

exit status: 0 done, 1 failed, 2 bad input
"""  # noqa: E501


def parse_args(argv=None):
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(epilog=EXAMPLES)
    parser.description = __doc__
    data = parser.add_argument_group("a dataset in COCO's format")
    for split, purpose in (("train", "training"), ("val", "evaluation")):
        data.add_argument(f"--{split}-json", metavar="FILE", help=f"annotations for {purpose}")
        data.add_argument(f"--{split}-images", metavar="DIR", help="folder of its images")
    data.add_argument(
        "--allow-empty-categories",
        action="store_true",
        help="train although some categories have no instances",
    )
    args = parser.parse_args(argv)
    for split in ("train", "val"):
        json_file, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if bool(json_file) != bool(images):
            parser.error(f"--{split}-json and --{split}-images belong together")
    if not args.config_file:
        parser.error("--config-file is missing")
    if len(args.opts) % 2:
        parser.error(f"options come in pairs, KEY VALUE; got {' '.join(args.opts)}")
    return args


def main(args, cfg, notes):
    """Train or evaluate with what ``setup`` returned."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import default_setup
    from detectron2.utils import comm

    import evonorm_plugins.integrations.detectron2  # noqa: F401
    from evonorm_plugins.integrations.detectron2.engine import Trainer, logger
    from evonorm_plugins.integrations.detectron2.report import write_report
    from evonorm_plugins.integrations.detectron2.run_setup import setup

    if comm.get_world_size() > 1:
        setup(args)  # data sets are registered in each process
    default_setup(cfg, args)
    for note in notes:
        logger.warning(note)
    cost = None
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        model = trainer.model
        results = getattr(trainer, "_last_eval_results", {})
        cost = trainer.steps.summary()
    if comm.is_main_process():
        from detectron2.evaluation import verify_results

        write_report(cfg, model, results, cost, command=sys.argv)
        if not verify_results(cfg, results):
            return 1
    return 0


def run(argv=None):
    args = parse_args(argv)
    import yaml
    from detectron2.engine import launch
    from torch.multiprocessing.spawn import ProcessRaisedException

    import evonorm_plugins.integrations.detectron2 as plugin
    from evonorm_plugins.integrations.detectron2.run_setup import setup

    # yacs raises AssertionError for a key that does not exist.
    bad_input = (ValueError, KeyError, FileNotFoundError, AssertionError, yaml.YAMLError)
    try:
        # Here: a mistake is told once, not by every process.
        cfg, notes = setup(args)
    except bad_input as error:
        return _fail(error, 2)
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, cfg, notes),
        )
    except (plugin.CheckpointError, plugin.NonFiniteError) as error:
        return _fail(error, 2 if isinstance(error, plugin.CheckpointError) else 1)
    except ProcessRaisedException as error:
        print(error, file=sys.stderr)
        return 2 if "CheckpointError" in str(error) else 1
    return 0


def _fail(error, code):
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(run())
