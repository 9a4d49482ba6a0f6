"""Images of any size, read from their files in every epoch by worker processes."""

import io
import signal
import sys

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, v2

from evonorm_plugins.classification.data import IMAGENET, Data
from evonorm_plugins.data.images import DAMAGED, eight_bits
from evonorm_plugins.errors import DataError
from evonorm_plugins.training.seeds import generator_of, mixed_seed

RESOLUTION = 224
# Of the short edge that an image is scaled to for validation, the crop in its middle keeps so much.
CROP_SHARE = 224 / 256


def files_data(train, val, chosen, val_chosen, config, rank, ranks):
    """:class:`evonorm_plugins.classification.data.Data` of two sources.

    Args:
        chosen, val_chosen: numbers of the images to train on (all ranks') and to validate on (this
            rank's).

    Raises:
        DataError: an image cannot be read; it is named.
    """
    size = config.resolution or RESOLUTION
    val_size = config.val_resolution or size
    resize = config.val_resize or round(val_size / CROP_SHARE)
    if resize < val_size:
        raise DataError(f"val_resize={resize} is less than val_resolution={val_size}")
    return Data(
        classes=train.classes,
        train=FilesTrainingData(
            train, chosen, _training_transform(size, config), config, rank, ranks
        ),
        val_batches=ValidationBatches(val, val_chosen, _val_transform(resize, val_size), config),
        mean=IMAGENET[0],
        std=IMAGENET[1],
        val_length=len(val_chosen),
    )


def _training_transform(size, config):
    if config.augment == "none":
        return _val_transform(round(size / CROP_SHARE), size)
    steps = [v2.RandomResizedCrop(size, scale=(config.crop_scale, 1.0), antialias=True)]
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.augment == "randaugment":
        strength = config.randaugment_ops, config.randaugment_magnitude
        # 31 bins: 30 is the strongest.
        steps.append(v2.RandAugment(*strength, 31, interpolation=InterpolationMode.BILINEAR))
    return v2.Compose([*steps, v2.PILToTensor()])


def _val_transform(resize, size):
    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])


class FilesTrainingData:
    """Batches for training; which images, and how they are augmented, depends on the seed and the
    number of the update alone, as in :mod:`evonorm_plugins.classification.memory`."""

    def __init__(self, source, chosen, transform, config, rank, ranks):
        self.source, self.chosen, self.transform = source, chosen, transform
        self.config, self.rank, self.ranks = config, rank, ranks

    def __len__(self):
        return len(self.chosen)

    def batches(self, step):
        """``(uint8 images, labels)`` of this rank from an update on, without end."""
        sampler = _RankBatches(self.chosen, step, self.config, self.rank, self.ranks)
        images = _Images(self.source, self.transform, self.config)
        yield from _read(images, sampler, self.config)


class ValidationBatches:
    """Called, it gives ``(uint8 images, labels)`` of some images, once each."""

    def __init__(self, source, chosen, transform, config):
        self.images = _Images(source, transform, config)
        self.config = config
        keys = [(int(i), 0) for i in chosen]
        size = config.val_batch_size
        self.batches = [keys[k : k + size] for k in range(0, len(keys), size)]

    def __call__(self):
        yield from _read(self.images, self.batches, self.config)


class _RankBatches(Sampler):
    """Endless batches of ``(image, seed)`` of one rank."""

    def __init__(self, chosen, step, config, rank, ranks):
        self.chosen, self.step, self.config = chosen, step, config
        self.rank, self.ranks = rank, ranks

    def __iter__(self):
        c, step, epoch = self.config, self.step, None
        update = c.batch_size * c.accumulations * self.ranks
        per_epoch = len(self.chosen) // update
        while True:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                random = generator_of(c.seed, 1, epoch)
                order = self.chosen[torch.randperm(len(self.chosen), generator=random)]
            for k in range(c.accumulations):
                first = (k * self.ranks + self.rank) * c.batch_size
                places = range(first, first + c.batch_size)
                start = step % per_epoch * update
                yield [(int(order[start + p]), mixed_seed(c.seed, 2, step, p)) for p in places]
            step += 1


class _Images(Dataset):
    """``[(image, seed)]``: ``(uint8 (3, H, W), label, names of damaged images)``.

    A damaged image is replaced by the next one. What is wrong is returned, not raised: an exception
    would arrive from a worker process wrapped in a traceback.
    """

    def __init__(self, source, transform, config):
        self.source, self.transform, self.max_corrupt = source, transform, config.max_corrupt

    def __getitem__(self, key):
        index, seed = key
        damaged = []
        while len(damaged) <= self.max_corrupt:
            try:
                image = eight_bits(Image.open(io.BytesIO(self.source.read(index)))).convert("RGB")
            except DAMAGED as error:
                damaged.append(f"{self.source.name(index)}: {error}")
                index = (index + 1) % len(self.source.labels)
                continue
            # The transforms draw from torch's own random numbers, which dropout goes on with.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed % 2**63)
                return self.transform(image), int(self.source.labels[index]), damaged
        return None, 0, damaged


def _read(images, batches, config):
    """Batches out of worker processes; each damaged image is named on stderr once."""
    several = {"prefetch_factor": config.prefetch} if config.workers else {}
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=config.workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        # Its own: a loader seeds its workers with a number that it would draw from torch's.
        generator=torch.Generator(),
        **several,
    )
    seen = set()
    for stacked, labels, damaged in loader:
        for text in damaged:
            if text not in seen:
                seen.add(text)
                print(f"damaged image: {text}", file=sys.stderr)
        if len(seen) > config.max_corrupt or stacked is None:
            raise DataError(
                f"{damaged[-1]}: cannot be read; max_corrupt={config.max_corrupt} such images are "
                "left out"
            )
        yield stacked, labels


def _collate(samples):
    images, labels, damaged = zip(*samples, strict=True)
    damaged = [name for names in damaged for name in names]
    if any(image is None for image in images):
        return None, None, damaged
    return torch.stack(images), torch.tensor(labels), damaged


def _start_worker(_):
    torch.set_num_threads(1)
    # Sent to all processes of a run; the one that trains decides when reading ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
