"""Are generated digits digits of the class asked for? A classifier of the real ones answers.

python -m biggan.digits --checkpoint output/digits32_EvoNormS0/best.pt
"""

import argparse
import json
import sys

import numpy as np
import torch

from biggan.generator import running_statistics_layers
from biggan.sampling import classes_of, load_generator, sample_uint8
from evonorm_plugins.errors import CheckpointError


def train_classifier(fraction=0.8):
    """A support vector machine on scikit-learn's digits, 8x8 pixels of 0 to 16.

    Returns:
        ``(classifier, accuracy)``: trained on the first ``fraction`` of the images, and its share
        of right answers on the rest, which other people wrote.
    """
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    digits = load_digits()
    count = int(len(digits.data) * fraction)
    classifier = SVC(gamma=0.001).fit(digits.data[:count], digits.target[:count])
    return classifier, classifier.score(digits.data[count:], digits.target[count:])


def pixels(images):
    """uint8 ``(N, 3, H, W)`` to what the classifier knows: ``(N, 64)``, 0 to 16."""
    grey = images.float().mean(1, keepdim=True)
    return (torch.nn.functional.adaptive_avg_pool2d(grey, 8) * (16 / 255)).flatten(1).numpy()


def score(path, n=1000, seed=0):
    """The share of ``n`` samples, all classes equally often, that the classifier gives their class.

    Returns:
        A dictionary with the score and how it was measured.
    """
    generator, config = load_generator(path)
    classifier, on_real = train_classifier()
    classes = list(range(config.num_classes))
    passes = 100 if running_statistics_layers(generator) else 0
    images = torch.cat(
        list(sample_uint8(generator, n, classes=classes, seed=seed, standing_statistics=passes))
    )
    labels = classes_of(range(n), seed, config.num_classes, classes).numpy()
    right = classifier.predict(pixels(images)) == labels
    return {
        "checkpoint": str(path),
        "norm": config.norm,
        "step": generator.step,
        "samples": n,
        "classified as asked for": float(right.mean()),
        "worst class": float(min(right[labels == k].mean() for k in classes)),
        "classifier on unseen real digits": float(on_real),
        "weights": "averaged (EMA)",
        "batch statistics": f"standing, {passes} forward passes" if passes else "none",
        "spread of samples of a class (levels)": float(
            np.mean([images[labels == k].float().std(0).mean() for k in classes])
        ),
        "seed": seed,
    }


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m biggan.digits", description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        record = score(args.checkpoint, args.n, args.seed)
    except (CheckpointError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        for key, value in record.items():
            print(f"{key:<40}{value:.3f}" if isinstance(value, float) else f"{key:<40}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
