"""Contact sheets: what the controls were shown, and what came of it, on one picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from disegno.core.result import Result

MARGIN_PX = 8
CAPTION_PX = 22


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
    cell = cell_px or max(256, *(max(p.size) for p in pictures))
    rows = -(-len(pictures) // columns)
    page = Image.new(
        "RGB",
        (columns * (cell + MARGIN_PX) + MARGIN_PX, rows * (cell + MARGIN_PX + CAPTION_PX) + MARGIN_PX),
        "white",
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
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
