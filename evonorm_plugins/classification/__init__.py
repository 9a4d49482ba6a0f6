"""Training of image classifiers with any norm-activation layer; see docs/classification.md."""
