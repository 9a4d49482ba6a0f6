"""Files of drawn images: a grid, an npz or a folder."""

import shutil
import zipfile

import numpy as np
import torch

from biggan.sampling import grid, to_picture, write_png
from evonorm_plugins.errors import NoSpaceError
from evonorm_plugins.files import new_folder, replacing
from evonorm_plugins.training.memory import check_memory


def write_samples(batches, labels, path, columns):
    """Write batches of uint8 ``(B, 3, H, W)`` as a grid, an npz or a folder.

    Args:
        labels: classes ``(N,)``.
        columns: of the grid.
    """
    if path.suffix.lower() == ".png":
        write_png(grid(torch.cat(list(batches)), columns), path)
    elif path.suffix.lower() == ".npz":
        write_npz(batches, labels, path)
    else:
        write_folder(batches, labels, path)


def write_npz(batches, labels, path):
    """``arr_0`` uint8 ``(N, H, W, 3)`` and ``arr_1`` classes ``(N,)``, never all in memory."""
    header = np.lib.format.write_array_header_1_0
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as f:
            for k, batch in enumerate(batches):
                images = batch.permute(0, 2, 3, 1).contiguous().numpy()
                if k == 0:
                    shape = (len(labels), *images.shape[1:])
                    header(f, {"descr": "|u1", "fortran_order": False, "shape": shape})
                f.write(images.tobytes())
        with archive.open("arr_1.npy", "w") as f:
            np.lib.format.write_array(f, labels.numpy())


def write_folder(batches, labels, path):
    """``000000_class207.png`` and so on; the folder appears once it is complete."""
    with new_folder(path) as partial:
        i = 0
        for batch in batches:
            for image in batch:
                name = f"{i:06d}_class{int(labels[i])}.png"
                to_picture(image).save(partial / name)
                i += 1


def check_room(args, config, columns, *, passes, device):
    """Find out before any image is drawn that there is no room for them.

    Args:
        args: of :mod:`biggan.sample`.
        columns: of the picture.
        passes: forward passes for statistics, of whole batches.

    Raises:
        ConfigError: they do not fit into memory.
        NoSpaceError: nor onto the disk.
    """
    image = 3 * config.resolution**2
    width = min(config.channel_multipliers or [1]) * config.channels
    at_once = columns if args.interpolate else min(args.batch_size, args.n)
    largest = max(at_once, args.batch_size if passes else 0)
    which = "--columns" if at_once == largest and args.interpolate else "--batch-size"
    check_memory(4 * largest * width * config.resolution**2, f"{which} {largest}", device)
    check_memory(32 * args.n, f"--n {args.n}")
    suffix = args.out.suffix.lower()
    if suffix == ".png":
        rows = args.n if args.interpolate else -(-args.n // columns)
        check_memory(2 * rows * columns * image, f"--n {args.n} in one picture")
        return
    # An npz is not compressed; a PNG takes a block at least.
    needed = args.n * (image if suffix == ".npz" else 4096)
    folder = args.out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise NoSpaceError(
            f"--out {args.out}: no space left to write --n {args.n} images: they take "
            f"{needed / 2**30:,.1f} GiB, {free / 2**30:,.1f} are free"
        )
