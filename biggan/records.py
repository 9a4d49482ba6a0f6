"""What a run leaves to read, and a sheet of fixed samples."""

import time

import torch

from biggan.sampling import grid, sample_uint8, write_png
from biggan.spectral import singular_values
from evonorm_plugins.training import records
from evonorm_plugins.training.config import to_dict

COLUMNS = 10  # classes on a sheet, at most


class Records(records.Records):
    """A line for every ``log_every`` steps and one for every score."""

    def __init__(self, config, folder, step, is_main):
        super().__init__(to_dict(config), folder, step, config.steps, is_main=is_main)
        self.config = config

    def write(self, step, values, trainer):
        """A line of numbers, with rates and the largest singular values."""
        if not self.is_main:
            return
        seconds = time.perf_counter() - self.started
        rate = (step - self.first) / seconds
        for name, module in (("g", trainer.generator), ("d", trainer.discriminator)):
            layers, sigmas = singular_values(module)
            largest = int(sigmas.argmax())
            values[f"{name}_largest_singular_value"] = sigmas[largest].item()
            values[f"{name}_largest_singular_value_of"] = layers[largest]
        values["images_per_second"] = rate * trainer.images_per_step
        values["seconds"] = seconds
        self.line(step, values)
        shown = ("d_loss", "g_loss", "d_accuracy_real", "d_accuracy_fake")
        self.show(
            **{k.replace("accuracy", "acc"): f"{values[k]:.3f}" for k in shown},
            **{"img/s": f"{values['images_per_second']:.1f}"},
        )

    def sheet(self, step, images):
        """Write the sheet of fixed samples ``(N, 3, H, W)`` of a step."""
        if self.is_main:
            sheet = grid(images, min(self.config.num_classes, COLUMNS))
            write_png(sheet, self.folder / "samples" / f"{step:07d}.png")
            if self.board:
                self.board.add_image("samples", sheet, step)


def fixed_samples(generator, config):
    """The same samples at every step: uint8 ``(rows * columns, 3, H, W)``, a class a column."""
    columns = min(config.num_classes, COLUMNS)
    classes = [k * config.num_classes // columns for k in range(columns)]
    n = columns * config.sample_rows
    # The moving statistics of the average: standing ones would take longer than what is shown.
    return torch.cat(list(sample_uint8(generator, n, classes=classes, seed=config.seed)))


def diversity(images):
    """Mean over pixels of the standard deviation over samples uint8 ``(N, 3, H, W)``, in levels."""
    return images.float().std(0).mean().item()
