"""All images of a source in memory, decoded once."""

import math
import os
from pathlib import Path

import numpy as np
import torch

from evonorm_plugins.data.cache import cached
from evonorm_plugins.data.decode import to_tensor
from evonorm_plugins.errors import DataError


def decoded(source):
    """All images of a source, uint8 (N, 3, H, W); kept in the user's cache folder.

    Raises:
        DataError: an image does not decode or has another size than the first, or they are more
            than fits in memory.
    """
    if source.images is not None:
        return source.images
    shape = (len(source), *to_tensor(source.image(0)).shape)
    check_fits(f"{len(source)} images like {source.name(0)}", shape, "reader=files")
    arrays = cached("images", source.files(), ["images"], lambda: [_decode(source, shape)])
    return torch.from_numpy(arrays["images"])


def _decode(source, shape):
    images = np.empty(shape, np.uint8)
    for i in range(len(source)):
        image = to_tensor(source.image(i))
        if image.shape != shape[1:]:
            raise DataError(
                f"{source.name(i)} is {image.shape[2]}x{image.shape[1]}, {source.name(0)} is "
                f"{shape[3]}x{shape[2]}; images in memory must be of one size, reader=files takes "
                "any"
            )
        images[i] = image.numpy()
    return images


def check_fits(what, shape, advice):
    """Raise :class:`DataError` where bytes of a shape are more than the memory that is free.

    Args:
        what, advice: for the message: what they are, and what takes less.
    """
    size, free = math.prod(shape), free_memory()
    if size > free:
        raise DataError(
            f"{what} take {size / 2**30:,.1f} GiB ({' x '.join(map(str, shape))} bytes), but "
            f"{free / 2**30:,.1f} GiB of memory are free; {advice} takes less"
        )


def free_memory():
    """Bytes that the system, or the control group that limits this process, still has."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(free, int(limit)) if limit != "max" else free
    except OSError:
        return free
