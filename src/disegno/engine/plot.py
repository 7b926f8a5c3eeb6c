"""Many pictures of one request, planned by `core/plot.py`, drawn and put on one labelled sheet."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from disegno.core.plot import Plot
from disegno.core.result import Progress, Result
from disegno.core.settings import Settings
from disegno.engine.generate import generate
from disegno.engine.sheet import MAX_SIDE_PX, strip, table
from disegno.engine.studio import Studio

MARGIN_PX = 4


@dataclass(frozen=True)
class Drawn:
    """One cell of a plot, drawn: its place in the order of the cells."""

    number: int
    result: Result


@dataclass(frozen=True)
class Plotted:
    """A plot, drawn: the results in the order of its cells; fewer where it was ended early, one at least."""

    plot: Plot
    results: tuple[Result, ...]

    def page(self) -> Image.Image:
        """Return everything on one sheet: x to the right, y downwards, z as tables below each other.

        A cell that was not drawn is grey.
        """
        xs, ys, zs = self.plot.labels
        most = MAX_SIDE_PX // len(xs), MAX_SIDE_PX // (len(ys) * len(zs))
        pairs = zip(self.plot.cells, self.results, strict=False)
        at = {cell.place: strip(result.images, *most) for cell, result in pairs}
        blank = Image.new("RGB", next(iter(at.values())).size, "grey")
        pages = [
            table([[at.get((x, y, z), blank) for x in range(len(xs))] for y in range(len(ys))], xs, ys, MARGIN_PX)
            for z in range(len(zs))
        ]
        return pages[0] if len(zs) == 1 else table([[page] for page in pages], [""], zs, MARGIN_PX)


def draw_plot(
    plot: Plot, *, studio: Studio | None = None, settings: Settings | None = None, preview_every: int = 0
) -> Iterator[Progress | Drawn | Plotted]:
    """Yield progress and each cell, then the drawn plot. Raises DisegnoError; closing the iterator interrupts.

    `preview_every`: as of `generate`.
    """
    studio, results = studio or Studio(settings), list[Result]()
    for n, cell in enumerate(plot.cells):
        for event in generate(cell.request, studio=studio, preview_every=preview_every):
            if isinstance(event, Result):
                results.append(event)
                yield Drawn(n, event)
            else:
                yield replace(
                    event, stage=f"{event.stage} {n + 1} of {len(plot.cells)}", part=n, num_parts=len(plot.cells)
                )
    yield Plotted(plot, tuple(results))
