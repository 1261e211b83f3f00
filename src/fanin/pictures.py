"""Two small pictures of a trained network, drawn with Pillow: its confusion matrix and some test images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, GREY, PAPER = (30, 30, 30), (150, 150, 150), (255, 255, 255)
BLUE, RED = (31, 95, 168), (200, 45, 35)
Color = tuple[int, int, int]


def confusion_matrix(truth: ArrayLike, predicted: ArrayLike, *, classes: int) -> NDArray[np.int64]:
    """Counts (classes, classes): row = true class, column = predicted class."""
    truth, predicted = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    assert truth.shape == predicted.shape and truth.ndim == 1
    for labels in (truth, predicted):
        assert ((labels >= 0) & (labels < classes)).all(), "a class outside 0..classes-1"
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def draw_confusion(matrix: NDArray[np.int64]) -> Image.Image:
    """Counts in cells shaded by the share of their row: blue on the diagonal, red beside it.

    The red follows the root of the share, or errors of a few per cent would look like none. Beyond 25 classes
    the cells carry no numbers.
    """
    classes = len(matrix)
    numbers = classes <= 25
    cell = max(2, min(40, 900 // classes))
    left, top, side = 64, 64, classes * cell
    picture = Image.new("RGB", (max(left + side + 24, 340), top + side + 20), PAPER)
    shades = _shades(matrix)
    tiles = Image.fromarray(shades).resize((side, side), Image.Resampling.NEAREST)
    picture.paste(tiles, (left, top))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left, top, left + side, top + side), outline=GREY)
    _write_titles(picture, matrix, left=left, top=top, side=side)
    _write_class_numbers(draw, classes, cell=cell, left=left, top=top)
    if numbers:
        digits = max(3, len(str(matrix.max())))
        font = _font(min(14, cell * 8 // (5 * digits)))
        for (row, column), count in np.ndenumerate(matrix):
            color = PAPER if shades[row, column].mean() < 140 else INK if count else GREY
            center = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
            draw.text(center, str(count), fill=color, font=font, anchor="mm")
    return picture


def _shades(matrix: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The colour (classes, classes, 3) of each cell; a class without images gets white cells."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(len(matrix), dtype=bool)
    strength = np.where(diagonal, share, np.sqrt(share))[..., None]
    full = np.where(diagonal[..., None], BLUE, RED)
    return np.rint(np.array(PAPER) + strength * (full - np.array(PAPER))).astype(np.uint8)


def _write_titles(picture: Image.Image, matrix: NDArray[np.int64], *, left: int, top: int, side: int) -> None:
    total, right = int(matrix.sum()), int(matrix.trace())
    draw = ImageDraw.Draw(picture)
    title = f"{right:,} of {total:,} right ({right / max(total, 1):.2%})"
    draw.text((left, 8), title, fill=INK, font=_font(16))
    draw.text((left + side / 2, 38), "predicted", fill=INK, font=_font(13), anchor="mm")
    upright = Image.new("RGB", (40, 20), PAPER)
    ImageDraw.Draw(upright).text((20, 10), "true", fill=INK, font=_font(13), anchor="mm")
    picture.paste(upright.rotate(90, expand=True), (12, int(top + side / 2 - 20)))


def _write_class_numbers(draw: ImageDraw.ImageDraw, classes: int, *, cell: int, left: int, top: int) -> None:
    step = -(-26 // cell)  # every class, or as many as fit
    for index in range(0, classes, step):
        middle = (index + 0.5) * cell
        draw.text((left + middle, top - 10), str(index), fill=INK, font=_font(12), anchor="mm")
        draw.text((left - 8, top + middle), str(index), fill=INK, font=_font(12), anchor="rm")


def draw_samples(
    images: Tensor, truth: Sequence[int] | Tensor, predicted: Sequence[int] | Tensor, *, count: int
) -> Image.Image:
    """A grid of `count` test images (N, C, H, W; C = 1 or 3, on any scale) over "true -> predicted".

    Wrong ones come first, in red frames. Each kind is picked evenly from the whole test set, as some test
    sets are sorted by class.
    """
    true, guess = np.asarray(truth), np.asarray(predicted)
    wrong, right = np.flatnonzero(true != guess), np.flatnonzero(true == guess)
    chosen = _spread(wrong, count)
    order = np.concatenate([chosen, _spread(right, count - len(chosen))])
    assert len(order) > 0
    tiles = [Image.fromarray(pixels) for pixels in _to_bytes(images[order])]
    side = 64
    columns = min(10, len(order))
    width, height, top = side + 12, side + 30, 34
    rows = -(-len(order) // columns)
    picture = Image.new("RGB", (max(columns * width + 12, 340), top + rows * height + 6), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((12, 8), f"true and predicted: {len(wrong):,} of {len(true):,} wrong", fill=INK, font=_font(16))
    for place, (index, tile) in enumerate(zip(order, tiles, strict=True)):
        x, y = 12 + place % columns * width, top + place // columns * height
        color = GREY if true[index] == guess[index] else RED
        _draw_sample(picture, tile.resize((side, side), Image.Resampling.NEAREST), at=(x, y), color=color)
        _write_arrow(draw, str(true[index]), str(guess[index]), at=(x + side / 2, y + side + 12), color=color)
    return picture


def _spread(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the indices, evenly spaced."""
    count = min(count, len(indices))
    return indices[np.arange(count) * len(indices) // max(count, 1)]


def _draw_sample(picture: Image.Image, tile: Image.Image, *, at: tuple[int, int], color: Color) -> None:
    x, y = at
    frame = 3 if color == RED else 1
    box = (x - frame, y - frame, x + tile.width + frame - 1, y + tile.height + frame - 1)
    ImageDraw.Draw(picture).rectangle(box, outline=color, width=frame)
    picture.paste(tile, at)


def _write_arrow(
    draw: ImageDraw.ImageDraw, truth: str, predicted: str, *, at: tuple[float, float], color: Color
) -> None:
    """The two classes around an arrow, drawn because the built-in font has none."""
    x, y = at
    ink = INK if color == GREY else color
    draw.text((x - 11, y), truth, fill=ink, font=_font(14), anchor="rm")
    draw.text((x + 11, y), predicted, fill=ink, font=_font(14), anchor="lm")
    draw.line((x - 7, y, x + 6, y), fill=color)
    draw.polygon([(x + 7, y), (x + 3, y - 3), (x + 3, y + 3)], fill=color)


def _to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Images (N, C, H, W) on any scale as bytes (N, H, W) or (N, H, W, 3), the extremes black and white."""
    pixels = np.moveaxis(images.detach().float().cpu().numpy(), 1, -1)
    pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]
    low, high = pixels.min(), pixels.max()
    return np.rint((pixels - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


_FONTS: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, for no other is on every machine. Kept, as loading it takes as long as a picture."""
    if size not in _FONTS:
        _FONTS[size] = ImageFont.load_default(size=size)
    return _FONTS[size]
