"""What ``evonorm eval gan`` prints and writes: scores of every seed, and how they were measured."""

from evonorm_plugins.cli.eval import common
from evonorm_plugins.errors import RunError
from evonorm_plugins.text_table import aligned

_NAMES = {
    "inception_score_mean": "IS",
    "inception_score_std": "IS, deviation of splits",
    "fid": "FID",
    "kid_mean": "KID",
    "kid_std": "KID, deviation of subsets",
    "precision_fraction": "precision, 0 to 1",
    "recall_fraction": "recall, 0 to 1",
    "f_score_fraction": "F score, 0 to 1",
    "density": "density, 1 if equal",
    "coverage_fraction": "coverage, 0 to 1",
    "fid_infinity": "FID at infinite N",
}


class Report:
    """The scores so far, and the record and the table of them.

    Args:
        args, options, extractor, fake, real_images, real: as the command has them.
        warnings: texts that the record repeats.

    Attributes:
        runs: :class:`evonorm_plugins.metrics.gan.Scored` by sampling seed; the command adds them.
    """

    def __init__(self, args, options, extractor, fake, real_images, real, warnings):
        self.args, self.options, self.extractor = args, options, extractor
        self.fake, self.real_images, self.real = fake, real_images, real
        self.warnings, self.runs = warnings, {}

    def check_subsets(self):
        """Warn of subsets of --fd-infinity that are too small for a straight line."""
        if "fd_infinity" in self.options.metrics:
            size, smallest = len(self.real.mean), self.options.fd_smallest
            if smallest <= size:
                self._warn(
                    f"--fd-infinity-smallest {smallest} is not above the {size} features: FID does "
                    "not fall with 1 / N there, and FID at infinite N is not to be trusted"
                )

    def _warn(self, message):
        self.warnings.append(message)
        common.warn(message)

    def show(self):
        """Print and write all there is; nothing where there are no scores."""
        if any(scored.scores for scored in self.runs.values()):
            record = self._record()
            common.show(record, _lines(record), self.args)

    def show_what_there_is(self, seed):
        """:meth:`show` after an error or an interruption of the run with this sampling seed."""
        if any(scored.scores for scored in self.runs.values()):
            self._warn(f"ended before all scores of seed {seed} were computed")
            self.show()

    def raise_failed(self):
        """Raise RunError where a metric could not be computed."""
        failed = {metric: text for s in self.runs.values() for metric, text in s.failed.items()}
        if failed:
            listed = "; ".join(f"{m.replace('_', '-')}: {text}" for m, text in failed.items())
            raise RunError(f"not all scores could be computed: {listed}")

    def _record(self):
        from evonorm_plugins.metrics import gan
        from evonorm_plugins.metrics.protocol import versions
        from evonorm_plugins.training.ranks import Ranks

        args, fake = self.args, self.fake
        runs = {seed: scored for seed, scored in self.runs.items() if scored.scores}
        median, best = gan.summary([scored.scores for scored in runs.values()])
        described = fake.describe()
        return {
            "kind": "gan",
            "name": args.name or described.get("norm") or (args.fake or args.checkpoint),
            "scores": median,
            "best": best,
            "runs": [_run(seed, scored) for seed, scored in runs.items()],
            "protocol": self._protocol(),
            "input": {
                "fake": described,
                "real": self.real_images.describe() if self.real_images else {"path": args.real},
                "sampling_seeds": args.seeds,
                "batch_size": args.batch_size,
                "processes": Ranks.current().size,
            },
            "warnings": self.warnings,
            "versions": versions("gan"),
            "command": args.command_line,
        }

    def _protocol(self):
        args, real, fake, metrics = self.args, self.real, self.fake, self.options.metrics
        sampled = bool(args.checkpoint)
        return {
            **self.options.describe(),
            "n_fake": len(fake),
            "n_real": real.n if real else None,
            "real_fingerprint": real.fingerprint() if real else None,
            "fid_formula": _formula(len(fake), real) if "fid" in metrics else None,
            **self.extractor.describe(),
            "ema": fake.ema if sampled else None,
            "mode": fake.mode if sampled else None,
            "truncation": args.truncation,
            "classes": args.classes or ("uniform" if sampled else None),
        }


def _run(seed, scored):
    run = {"sampling_seed": seed, "scores": scored.scores, "extraction_seconds": scored.seconds}
    return run | ({"failed": scored.failed} if scored.failed else {})


def _formula(n_fake, real):
    from evonorm_plugins.metrics.gan import is_singular

    if is_singular(n_fake, real):
        return "eigenvalues of the product, as the tools: no more images than features"
    return "symmetric eigenvalues"


def _lines(record):
    protocol, runs = record["protocol"], record["runs"]
    several = len(runs) > 1
    rows = [["", *(f"seed {run['sampling_seed']}" for run in runs), "median", "best"]]
    if not several:
        rows = [["", "score"]]
    for key in record["scores"]:
        name, bracket, label = key.partition("[")
        cells = [_cell(run["scores"].get(key)) for run in runs]
        if several:
            cells += [_cell(record["scores"][key]), _cell(record["best"].get(key), "")]
        rows.append([f"{_NAMES[name]}{' [' + label if bracket else ''}", *cells])
    shown = ("n_fake", "n_real", "splits", "shuffle_seed", "backend", "precision")
    shown += ("extractor", "ema", "mode", "truncation")
    values = (f"{key} {protocol[key]}" for key in shown if protocol[key] is not None)
    return [aligned(rows), "", f"protocol: {', '.join(values)}"]


def _cell(value, missing="-"):
    return missing if value is None else f"{value:.6g}"
