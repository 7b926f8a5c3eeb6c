"""Pictures of one job on one sheet without words, as A1111 lays them out."""

from collections.abc import Sequence

from PIL import Image


def layout(num: int, n_rows: int, batch_size: int) -> tuple[int, int]:
    """Return (columns, rows) of a grid. A1111 parity: -1 is about square, 0 is one row for each of the batch."""
    if n_rows > 0:
        rows = n_rows
    elif n_rows == 0:
        rows = batch_size
    else:
        rows = round(num**0.5)
    rows = max(1, min(rows, num))
    return -(-num // rows), rows


def grid(pictures: Sequence[Image.Image], n_rows: int = -1, batch_size: int = 1) -> Image.Image:
    """Return the pictures side by side on black, each in a cell of the first one's size."""
    columns, rows = layout(len(pictures), n_rows, batch_size)
    width, height = pictures[0].size
    page = Image.new("RGB", (columns * width, rows * height), "black")
    for i, picture in enumerate(pictures):
        page.paste(picture.convert("RGB"), (i % columns * width, i // columns * height))
    return page
