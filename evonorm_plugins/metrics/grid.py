"""A picture of what was scored: some generated images beside some real ones."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from evonorm_plugins.errors import InputError
from evonorm_plugins.files import replacing
from evonorm_plugins.plots import SOFTWARE

if TYPE_CHECKING:
    import torch
    from PIL import Image

_SIDE = 96  # pixels of a cell
_GAP, _MARGIN, _TITLE = 2, 12, 30


def evenly_spaced(n: int, count: int = 64) -> list[int]:
    """Indices of ``count`` of ``n`` images, spread over all of them."""
    count = min(n, count)
    return [k * n // count for k in range(count)]


def check_grid_path(path: str | os.PathLike) -> None:
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"--grid {path} must end in .png")


def write_grid(path: str | os.PathLike, panels: "dict[str, list[torch.Tensor]]") -> None:
    """Write titled panels side by side as PNG, to a temporary name first.

    Args:
        path: ends in .png.
        panels: ``{title: list of uint8 (3, H, W)}``; sizes may differ. Empty ones are left out.
    """
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo

    check_grid_path(path)
    panels = {title: images for title, images in panels.items() if len(images)}
    sheets = {title: _sheet(images) for title, images in panels.items()}
    width = _MARGIN + sum(sheet.width + _MARGIN for sheet in sheets.values())
    height = _TITLE + max(sheet.height for sheet in sheets.values()) + _MARGIN
    picture = Image.new("RGB", (width, height), "white")
    draw, x = ImageDraw.Draw(picture), _MARGIN
    for title, sheet in sheets.items():
        size = 16
        while size > 8 and draw.textlength(title, ImageFont.load_default(size)) > sheet.width:
            size -= 1
        at = x + sheet.width / 2, _TITLE / 2
        draw.text(at, title, "black", ImageFont.load_default(size), anchor="mm")
        picture.paste(sheet, (x, _TITLE))
        x += sheet.width + _MARGIN
    made_with = PngInfo()
    made_with.add_text("Software", SOFTWARE)
    with replacing(path) as partial:
        picture.save(partial, "PNG", pnginfo=made_with)


def _sheet(images: "list[torch.Tensor]") -> "Image.Image":
    from PIL import Image

    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (columns * step - _GAP, rows * step - _GAP), "white")
    for k, image in enumerate(images):
        cell = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        scale = _SIDE / max(cell.size)
        size = [max(1, round(v * scale)) for v in cell.size]
        # Small images keep their pixels: what was scored is to be seen, not what it might be.
        kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        cell = cell.resize(size, kind)
        x, y = k % columns * step, k // columns * step
        sheet.paste(cell, (x + (_SIDE - size[0]) // 2, y + (_SIDE - size[1]) // 2))
    return sheet
