"""Pictures of one job on one sheet without words, as A1111 lays them out; and a plot's, with its labels."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

FONT_PX = 14
LINE_PX = 18


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


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_PX)


def _wrapped(text: str, width: int) -> list[str]:
    """Return a label's lines, none wider than `width` pixels; a word that is wider is cut."""
    font, lines = _font(), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while len(word) > 1 and font.getlength(word) > width:
            word = word[:-1]
        lines.append(word)
    return [line for line in lines if line][:8] or [""]


def table(
    cells: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    rows: Sequence[str],
    margin: int = 0,
    legend: bool = True,
) -> Image.Image:
    """Return rows of pictures with a label above each column and one left of each row, dark on white."""
    width = max(picture.width for row in cells for picture in row)
    height = max(picture.height for row in cells for picture in row)
    tops = [_wrapped(label, width) for label in columns]
    lefts = [_wrapped(label, max(width // 2, 96)) for label in rows]
    top = max(len(lines) for lines in tops) * LINE_PX + 8 if legend and any(columns) else 0
    left = max(width // 2, 96) + 8 if legend and any(rows) else 0
    step_x, step_y = width + margin, height + margin
    page = Image.new("RGB", (left + step_x * len(columns) - margin, top + step_y * len(rows) - margin), "white")
    draw = ImageDraw.Draw(page)
    for i, row in enumerate(cells):
        for j, picture in enumerate(row):
            page.paste(picture.convert("RGB"), (left + j * step_x, top + i * step_y))
    if top:
        for j, lines in enumerate(tops):
            _write(draw, lines, left + j * step_x + width / 2, top / 2)
    if left:
        for i, lines in enumerate(lefts):
            _write(draw, lines, (left - 8) / 2, top + i * step_y + height / 2)
    return page


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], x: float, y: float) -> None:
    """Write lines around a middle point."""
    for k, line in enumerate(lines):
        draw.text((x, y + (k - (len(lines) - 1) / 2) * LINE_PX), line, fill="black", font=_font(), anchor="mm")
