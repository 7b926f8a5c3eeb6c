"""Contact sheets: what the controls were shown, and what came of it, on one picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from disegno.core.result import Result

MARGIN_PX = 8
CAPTION_PX = 22
FONT_PX = 14
LINE_PX = 18
MAX_LINES = 8  # of a label
MAX_SIDE_PX = 12_000  # of a sheet without its labels: WebP ends at 16,383, and 12,000 squared take 0.4 GB
MAX_LABEL_PX = 320  # of a row's


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize(size, resample)


def sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 0, cell_px: int = 0) -> Image.Image:
    """Return the pictures in a grid, each above its caption.

    `columns` 0: about square; `cell_px` 0: the largest picture's size, at least 256.
    """
    if not pictures:
        raise ValueError("a sheet needs at least one picture")
    columns = columns or (len(pictures) if len(pictures) <= 5 else round(len(pictures) ** 0.5 + 0.4))
    rows = -(-len(pictures) // columns)
    cell = cell_px or min(max(256, *(max(p.size) for p in pictures)), MAX_SIDE_PX // max(columns, rows))
    page = Image.new(
        "RGB",
        (columns * (cell + MARGIN_PX) + MARGIN_PX, rows * (cell + MARGIN_PX + CAPTION_PX) + MARGIN_PX),
        "white",
    )
    draw, font = ImageDraw.Draw(page), _font()
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = MARGIN_PX + i % columns * (cell + MARGIN_PX)
        top = MARGIN_PX + i // columns * (cell + MARGIN_PX + CAPTION_PX)
        small = _fitted(picture, cell, cell)
        page.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
        draw.text((left + 2, top + cell + 2), _shortened(caption, cell, font), fill="#333333", font=font)
    return page


def _shortened(caption: str, width_px: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(caption) <= width_px:
        return caption
    while caption and font.getlength(caption + "…") > width_px:
        caption = caption[:-1]
    return caption + "…"


def result_sheet(result: Result) -> Image.Image:
    """Return the conditions and the images of a result on one sheet, with names and seeds."""
    shown = [f"{unit.name} {unit.strength:g}" for unit in result.request.controls]
    seeds = [f"seed {seed}" for seed in result.seeds]
    return sheet([*result.conditions, *result.images], [*shown, *seeds])


def strip(pictures: Sequence[Image.Image], width: int = MAX_SIDE_PX, height: int = MAX_SIDE_PX) -> Image.Image:
    """Return the pictures side by side, smaller where they would be more than `width` or `height` pixels."""
    scale = min(1.0, width / sum(p.width for p in pictures), height / max(p.height for p in pictures))
    if scale < 1:
        pictures = [_fitted(p, max(1, int(p.width * scale)), max(1, int(p.height * scale))) for p in pictures]
    height = max(picture.height for picture in pictures)
    page = Image.new("RGB", (sum(picture.width for picture in pictures), height), "white")
    left = 0
    for picture in pictures:
        page.paste(picture.convert("RGB"), (left, 0))
        left += picture.width
    return page


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_PX)


def wrapped(text: str, width: int) -> list[str]:
    """Return a label's lines, none wider than `width` pixels; a word that is wider goes over several."""
    font, lines = _font(), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line][:MAX_LINES] or [""]


def _widest(labels: Sequence[Sequence[str]]) -> int:
    return round(max(_font().getlength(line) for lines in labels for line in lines))


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
    tops = [wrapped(label, width) for label in columns]
    lefts = [wrapped(label, min(max(width // 2, 96), MAX_LABEL_PX)) for label in rows]
    top = max(len(lines) for lines in tops) * LINE_PX + 8 if legend and any(columns) else 0
    left = _widest(lefts) + 2 * MARGIN_PX if legend and any(rows) else 0
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
            _write(draw, lines, left / 2, top + i * step_y + height / 2)
    return page


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], x: float, y: float) -> None:
    """Write lines around a middle point."""
    for k, line in enumerate(lines):
        draw.text((x, y + (k - (len(lines) - 1) / 2) * LINE_PX), line, fill="black", font=_font(), anchor="mm")
