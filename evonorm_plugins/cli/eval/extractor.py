"""Make a feature extractor of a classifier that ``evonorm classify`` has trained.

The file maps uint8 images (B, 3, H, W) to what the classifier's last layer takes, and to logits. It
is the FILE of --feature-extractor, and of extractor=FILE when a GAN is trained.
"""

from evonorm_plugins.cli import types

EXAMPLES = """
examples:
  of a classifier of CIFAR-10, and how far the test images are from the training images by it:
    evonorm eval extractor --classifier output/classifier/best.pt --resolution 32 --out cifar10.pt2
    evonorm eval gan --fake cifar10-test.zip --real cifar10-train.zip \\
        --feature-extractor cifar10.pt2 --is --fid --prc
"""


def add_arguments(parser):
    parser.add_argument("--classifier", required=True, metavar="FILE", help="best.pt of a run")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="file to write, of torch.export"
    )
    parser.add_argument(
        "--resolution",
        type=types.count,
        metavar="N",
        help="images of other sizes are resized to N x N (default: what the run was validated on, "
        "where its config says so)",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def run(args):
    from evonorm_plugins.classification.extractor import export_features, load_features
    from evonorm_plugins.files import check_output

    check_output(args.out, inputs=[args.classifier], force=args.force)
    features = load_features(args.classifier, args.resolution)
    export_features(features, args.out)
    size = features.resolution
    print(
        f"{args.out}: what {features.name} of {args.classifier} takes, and logits, at {size}x{size}"
    )
    return 0
