"""Looks at a style LoRA while it is taught: held-out captions drawn with it and without it, from the same seeds.

What a style is, no figure says: the pictures do, beside the real ones; and the held-out loss.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from disegno.core.request import LoraUse, Request
from disegno.core.teach import TeachRequest
from disegno.engine.sheet import sheet
from disegno.engine.studio import Studio
from disegno.training.base import Look, Looking, Pairs, Picture
from disegno.training.convergence import EFFECT
from disegno.training.redraw import Row
from disegno.training.trial import drawing, effect, rows_of
from disegno.training.watcher import CELL_PX, Drawn, looking_by, pace, written


@dataclass
class StyleWatcher:
    """A `Watcher`. `held_out`: pictures that are not trained on; `folder`: for the sheets."""

    request: TeachRequest
    held_out: Pairs
    folder: Path
    studio: Studio
    _shared: tuple[Request, tuple[Row, ...], Drawn] | None = None

    def look(self, control: Path, step: int) -> Looking:
        """Return what the LoRA in this file can do by now; it yields after every step. Raises DisegnoError."""
        with looking_by(self.studio, self.request.model):
            template, rows, without = self._shared = self._shared or (yield from self._begin())
            worn = replace(template, loras=(LoraUse(name=str(control)),))
            drawn = yield from self._draw(rows, worn)
            page = _page(rows, drawn, without)
            path = written(page, self.folder / f"step-{step:06d}.png")
            return Look(step, None, {EFFECT: effect(drawn, without)}, path)

    def _begin(self) -> Generator[None, None, tuple[Request, tuple[Row, ...], Drawn]]:
        """Return the template, the held-out pictures, and what the model draws for their captions without the LoRA."""
        request, backbone = self.request, self.studio.backbone(self.request.model)
        num_rows, num_seeds = pace(backbone, self.studio)
        width, height = request.width or backbone.defaults.width, request.height or backbone.defaults.height
        template = Request(model=request.model, width=width, height=height, batch=num_seeds)
        rows = rows_of(self.held_out, num_rows, (width, height), request.seed)
        return template, rows, (yield from self._draw(rows, template))

    def _draw(self, rows: Sequence[Row], template: Request) -> Generator[None, None, Drawn]:
        drawn: Drawn = ()
        for row in rows:
            drawn += ((yield from drawing(row, template, None, self.studio, None)),)
        return drawn


def _page(rows: Sequence[Row], drawn: Drawn, without: Drawn) -> Image.Image:
    """Return a grid, a caption a line: with the LoRA, without it from the same seeds, the real picture."""
    cells: list[tuple[Picture, str]] = []
    for row, pictures, others in zip(rows, drawn, without, strict=True):
        cells += [(picture, f"{row.caption or row.key}, seed {row.seed + i}") for i, picture in enumerate(pictures)]
        cells += [(picture, "without") for picture in others]
        cells.append((row.real, "real"))
    pictures, captions = zip(*cells, strict=True)
    widest = max(max(picture.shape) for picture in pictures)
    return sheet([Image.fromarray(p) for p in pictures], captions, len(cells) // len(rows), min(CELL_PX, widest))
