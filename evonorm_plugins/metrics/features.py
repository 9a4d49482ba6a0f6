"""One pass over images: features to statistics, and to a file where single ones are needed."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from evonorm_plugins.errors import InputError
from evonorm_plugins.metrics.data import ImageSource
from evonorm_plugins.metrics.extractor import Extractor
from evonorm_plugins.metrics.inception import full_float32
from evonorm_plugins.metrics.inception_score import InceptionScore
from evonorm_plugins.metrics.moments import Moments
from evonorm_plugins.training.ranks import Ranks

_Item = TypeVar("_Item")
_ROWS = 4096  # features that travel between processes at a time


@dataclass
class Wanted:
    """What a pass has to give.

    Attributes:
        moments: mean and covariance of features.
        splits: (N,) split of each image for the Inception score, or None.
        features: the features themselves.
        pictures: indices of images to keep.
        size: numbers in a feature vector of the statistics to compare with, or None.
        logits: whether the extractor must give some, for a later pass if not for this one.
    """

    moments: bool = True
    splits: np.ndarray | None = None
    features: bool = False
    pictures: list[int] = field(default_factory=list)
    size: int | None = None
    logits: bool = False


@dataclass
class Pass:
    """What a pass gave; the same in every process but for ``features``, the main one's."""

    n: int
    size: int = 0  # numbers in a feature vector; 0 before the first
    moments: Moments | None = None
    score: InceptionScore | None = None
    features: np.ndarray | None = None
    pictures: dict[int, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0


def progress_bar(quiet: bool) -> Callable[..., tqdm]:
    """tqdm on stderr, in the main process and unless ``quiet``: ``bar(label, total, unit)``."""

    def bar(label: str, total: int, unit: str = " images") -> tqdm:
        hidden = quiet or not Ranks.current().is_main
        return tqdm(desc=label, total=total, disable=hidden, unit=unit, mininterval=0.5)

    return bar


def stepped(iterator: Iterable[_Item], bar: tqdm) -> Iterator[_Item]:
    """Advance a bar by one for each item."""
    with bar:
        for item in iterator:
            yield item
            bar.update()


def run_pass(
    source: ImageSource,
    extractor: Extractor,
    wanted: Wanted,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    bar: tqdm | None = None,
) -> Pass:
    """Extract features of every image once.

    Args:
        source: of :mod:`~evonorm_plugins.metrics.data` or a sampled checkpoint.
        extractor: images to features and logits.
        wanted: :class:`Wanted`.
        bar: a progress bar whose ``update(n)`` counts the images of this process, or None.

    Returns:
        Pass

    Raises:
        InputError: an image cannot be read, or the extractor gives no logits where they are needed,
            features that are not finite, or features of another length than before.
    """
    start = time.perf_counter()
    result = Pass(n=len(source))
    spool = _Spool(len(source)) if wanted.features else None
    ranks = Ranks.current()
    batches = source.batches(
        batch_size,
        process=ranks.rank,
        processes=ranks.size,
        workers=workers,
        pin=torch.device(device).type == "cuda",
    )
    pictures = set(wanted.pictures)
    with full_float32(), bar or contextlib.nullcontext():
        for indices, images in batches:
            try:
                features, logits = extractor(images)
            except InputError as error:
                raise InputError(f"{_names(source, indices)}: {error}") from None
            _check(features, logits, indices, wanted, result, source, extractor)
            _count(features, logits, indices, wanted, result, device)
            if spool:
                spool.add(indices, features)
            for k in pictures.intersection(indices):
                result.pictures[k] = images[indices.index(k)].clone().cpu()
            if bar:
                # The others' are as far: batches are dealt out in turn.
                bar.update(min(len(indices) * ranks.size, len(source) - bar.n))
    _join(result, wanted, device)
    if spool:
        result.features = spool.collect(result.size)
    result.seconds = time.perf_counter() - start
    return result


def _names(source: ImageSource, indices: list[int]) -> str:
    more = f" and {len(indices) - 1} more images" if len(indices) > 1 else ""
    return f"{source.name(indices[0])}{more}"


def _check(
    features: torch.Tensor,
    logits: torch.Tensor | None,
    indices: list[int],
    wanted: Wanted,
    before: Pass,
    source: ImageSource,
    extractor: Extractor,
) -> None:
    """Raise InputError for features that are none, or not what was wanted."""
    size, name = features.shape[1], extractor.label or "Inception"
    if wanted.size not in (None, size):
        raise InputError(
            f"the statistics of real images are of {wanted.size} features, the extractor gives "
            f"{size} ({name})"
        )
    if before.size not in (0, size):
        raise InputError(
            f"{source.name(indices[0])}: the extractor {name} gives {size} features, of images "
            f"before {before.size}; it must do its own resizing"
        )
    before.size = size
    if not torch.isfinite(features).all():
        row, column = (~torch.isfinite(features)).nonzero()[0].tolist()
        raise InputError(
            f"{source.name(indices[row])}: the extractor {name} gives feature {column} = "
            f"{features[row, column].item()}; all must be finite"
        )
    if logits is None and (wanted.logits or wanted.splits is not None):
        raise InputError(
            "an Inception score needs logits, and the feature extractor returns features alone; "
            "return (features, logits), or ask for --fid, --kid or --prc"
        )


def _count(
    features: torch.Tensor,
    logits: torch.Tensor | None,
    indices: list[int],
    wanted: Wanted,
    result: Pass,
    device: str | torch.device,
) -> None:
    if wanted.moments:
        if result.moments is None:
            result.moments = Moments(features.shape[1], device)
        result.moments.update(features)
    if wanted.splits is not None:
        assert logits is not None  # as checked
        if result.score is None:
            result.score = InceptionScore(wanted.splits, logits.shape[1], device)
        result.score.update(torch.tensor(indices), logits)


def _join(result: Pass, wanted: Wanted, device: str | torch.device) -> None:
    """Merge what the processes have counted; one that had no batch has nothing but zeros."""
    ranks = Ranks.current()
    if ranks.size == 1:
        return
    classes = result.score.probabilities.shape[1] if result.score else 0
    sizes = ranks.gather_objects((result.size, classes))
    given = {size for size, _ in sizes if size}
    if len(given) > 1:  # the same on every rank
        raise InputError(
            f"the extractor gives features of different lengths, {sorted(given)}; it must do its "
            "own resizing"
        )
    result.size = max(given)
    if wanted.moments:
        result.moments = _joined_moments(result.moments or Moments(result.size, device))
    if wanted.splits is not None:
        classes = max(size[1] for size in sizes)
        result.score = result.score or InceptionScore(wanted.splits, classes, device)
        for tensor in result.score.sums():
            tensor.copy_(ranks.sum(tensor))
    for pictures in ranks.gather_objects(result.pictures):
        result.pictures.update(pictures)


def _joined_moments(own: Moments) -> Moments:
    """Every process's deviations from the mean of all (Chan et al.), added up."""
    joined, ranks = Moments(len(own.mean), own.mean.device), Ranks.current()
    n = ranks.sum(torch.tensor(own.n, dtype=torch.float64, device=own.mean.device))
    joined.n = int(n)
    joined.mean = ranks.sum(own.mean * (own.n / n))
    delta = own.mean - joined.mean
    joined.deviations = ranks.sum(own.deviations.addr_(delta, delta, alpha=own.n))
    return joined


class _Spool:
    """Features on disk, so that memory does not grow with the number of images."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.file = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the features
        self.size = 0  # until the first batch
        self.own: list[int] = []

    def add(self, indices: list[int], features: torch.Tensor) -> None:
        rows = features.float().cpu().numpy()
        self.size = rows.shape[1]
        self.own += indices
        # Batches are consecutive images.
        self.file.seek(indices[0] * self.size * 4)
        self.file.write(rows.tobytes())

    def collect(self, size: int) -> np.memmap | None:
        """(N, ``size``) float32 memory map in the main process, None in others."""
        ranks = Ranks.current()
        self.size = size  # a process without images has seen none
        self.file.flush()
        if ranks.size > 1:
            self._receive(ranks)
        if not ranks.is_main:
            return None
        os.ftruncate(self.file.fileno(), self.n * self.size * 4)
        return np.memmap(self.file, np.float32, "r", shape=(self.n, self.size))

    def _receive(self, ranks: Ranks) -> None:
        own = ranks.gather_objects(self.own)
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        for sender in range(1, ranks.size):
            for start in range(0, len(own[sender]), _ROWS):
                places = own[sender][start : start + _ROWS]
                rows = torch.empty(len(places), self.size, device=device)
                if ranks.rank == sender:
                    rows.copy_(torch.from_numpy(self._read(places)))
                torch.distributed.broadcast(rows, sender)
                if ranks.is_main:
                    self._write(places, rows.cpu().numpy())

    def _read(self, places: list[int]) -> np.ndarray:
        rows = np.empty((len(places), self.size), np.float32)
        for k, place in enumerate(places):
            self.file.seek(place * self.size * 4)
            rows[k] = np.frombuffer(self.file.read(self.size * 4), np.float32)
        return rows

    def _write(self, places: list[int], rows: np.ndarray) -> None:
        for place, row in zip(places, rows, strict=True):
            self.file.seek(place * self.size * 4)
            self.file.write(row.tobytes())
        self.file.flush()
