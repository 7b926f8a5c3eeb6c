"""Looks at a training: draws held-out conditions with the file just saved, through the engine, and compares.

The first look also draws every picture without the control (the floor) and sends the real ones through the model's VAE
(the ceiling); both are kept. The same pairs and seeds are drawn at every look, so that looks can be compared.
"""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from disegno.backbones.base import Backbone
from disegno.core.errors import ResourceError
from disegno.core.files import write_atomically
from disegno.core.request import ControlUnit, Request
from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.engine.sheet import sheet
from disegno.engine.studio import Studio
from disegno.training.base import Look, Looking, Pairs, Picture
from disegno.training.convergence import AGREEMENT, CEILING, CONTROLLABILITY, EFFECT, ERROR, FLOOR, SWAPPED
from disegno.training.data.dataset import Maker
from disegno.training.redraw import Criterion, Row, agreement, criterion_for
from disegno.training.trial import Values, controllability, drawing, effect, rows_of, through_vae, values_of
from disegno.training.undisturbed import undisturbed

log = logging.getLogger(__name__)

NUM_ROWS, NUM_SEEDS = 8, 2
SLOW_ROWS, SLOW_SEEDS = 4, 1  # of a large model without a GPU: a picture takes minutes there
SLOW_PARAMETERS = 100_000_000
RESIDUALS_MIB = 64  # a control is drawn with once and forgotten
CELL_PX = 192  # the widest a picture is on a sheet

Drawn = tuple[tuple[Picture, ...], ...]  # each row's pictures


@dataclass(frozen=True)
class Baseline:
    """What all looks share: the pairs on their canvas, what is compared, and what is reached without the control."""

    template: Request
    rows: tuple[Row, ...]
    criterion: Criterion
    agreement: float
    swapped: float
    without: Drawn
    floor: Values
    ceiling: Values


@dataclass
class EngineWatcher:
    """A `Watcher` that draws with the engine. `held_out`: pairs that are not trained on; `folder`: for the sheets.

    Small models and their Base ControlNets stay open in `studio` between looks. `steps`: of sampling; unset, the
    model's own. `task`: which of the file's conditions it is.
    """

    request: TeachRequest
    held_out: Pairs
    folder: Path
    studio: Studio
    script: Maker | None = None
    steps: int | None = None
    task: str | None = None
    _baseline: Baseline | None = None

    def look(self, control: Path, step: int) -> Looking:
        """Return what the control in this file can do by now; it yields after every step. Raises DisegnoError."""
        with looking_by(self.studio, self.request.model):
            baseline = self._baseline = self._baseline or (yield from self._measure())
            self.studio.close_controls()  # the file may have the last look's name
            unit = ControlUnit(name=str(control), image="", base=self.request.base, task=self.task)
            drawn = yield from self._draw(baseline.rows, baseline.template, unit)
            self.studio.close_controls()
            values = values_of(baseline.criterion, baseline.rows, drawn)
            metrics = figures(baseline, drawn, values)
            return Look(step, None, metrics, self._write_sheet(baseline, drawn, self.folder / f"step-{step:06d}.png"))

    def _draw(self, rows: Sequence[Row], template: Request, unit: ControlUnit | None) -> Generator[None, None, Drawn]:
        drawn: Drawn = ()
        for row in rows:
            drawn += ((yield from drawing(row, template, unit, self.studio, None)),)
        return drawn

    def _measure(self) -> Generator[None, None, Baseline]:
        """Return what all looks share, drawn and measured when the first one is taken."""
        request, backbone = self.request, self.studio.backbone(self.request.model)
        num_rows, num_seeds = pace(backbone, self.studio)
        template = Request(
            model=request.model,
            width=request.width or backbone.defaults.width,
            height=request.height or backbone.defaults.height,
            batch=num_seeds,
            steps=self.steps,
        )
        assert template.width and template.height
        rows = rows_of(self.held_out, num_rows, (template.width, template.height), request.seed)
        criterion = criterion_for(self.held_out, rows, request.annotator, request.params, script=self.script)
        without = yield from self._draw(rows, template, None)
        real: list[tuple[Picture, ...]] = []
        for row in rows:
            real.append((through_vae(row.real, backbone),))
            yield
        return Baseline(
            template,
            rows,
            criterion,
            agreement(criterion, rows),
            agreement(criterion, rows, swapped=True),
            without,
            values_of(criterion, rows, without),
            values_of(criterion, rows, real),
        )

    def _write_sheet(self, baseline: Baseline, drawn: Drawn, path: Path) -> Path | None:
        """Return where the look's pictures lie; None where the disk did not take them: the figures count more."""
        return written(look_sheet(baseline, drawn), path)


def written(page: Image.Image, path: Path) -> Path | None:
    """Return where a look's pictures lie; None where the disk did not take them: a training goes on without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: page.save(temporary, "PNG"))
    except (OSError, ResourceError) as error:
        log.warning("The pictures of step %s could not be written: %s", path.stem, error)
        return None
    return path


def open_watcher(
    request: TeachRequest,
    held_out: Pairs,
    folder: Path,
    settings: Settings,
    script: Maker | None = None,
    task: str | None = None,
) -> EngineWatcher:
    """Return the watcher of a training; nothing is opened or drawn before its first look.

    `script`: what made the conditions, where it was no annotator of the registry. `task`: see EngineWatcher.
    """
    few = replace(settings, residual_cache_mib=min(RESIDUALS_MIB, settings.residual_cache_mib))
    return EngineWatcher(request, held_out, folder, Studio(few), script, task=task)


@contextmanager
def looking_by(studio: Studio, model: str) -> Generator[None]:
    """Within it a look is taken; a large model is closed after it, or the training would have no room beside it."""
    with undisturbed():
        is_large = _is_large(studio.backbone(model))
        try:
            yield
        finally:
            if is_large:
                studio.close()


def _is_large(backbone: Backbone) -> bool:
    return sum(parameter.numel() for parameter in backbone.net.parameters()) > SLOW_PARAMETERS


def pace(backbone: Backbone, studio: Studio) -> tuple[int, int]:
    """Return how many pairs a look draws, and how many seeds of each: few where a picture takes minutes."""
    slow = studio.memory.policy.device.type == "cpu" and _is_large(backbone)
    return (SLOW_ROWS, SLOW_SEEDS) if slow else (NUM_ROWS, NUM_SEEDS)


def figures(baseline: Baseline, drawn: Drawn, values: Values) -> dict[str, float]:
    """Return a look's figures by name, as `convergence.judge` reads them."""
    criterion = baseline.criterion
    name = criterion.figure
    found = {
        name: float(values.mean()),
        name + FLOOR: float(baseline.floor.mean()),
        name + CEILING: float(baseline.ceiling.mean()),
        EFFECT: effect(drawn, baseline.without),
        AGREEMENT: baseline.agreement,
        SWAPPED: baseline.swapped,
    }
    reached = controllability(criterion, values, baseline.floor, baseline.ceiling)
    return found if reached is None else found | {CONTROLLABILITY: reached.mean, ERROR: reached.error}


def look_sheet(baseline: Baseline, drawn: Drawn) -> Image.Image:
    """Return a grid, a pair a line: condition, each picture and its own drawing, without the control, the real one."""
    criterion = baseline.criterion
    cells: list[tuple[Picture, str]] = []
    for row, pictures, without, floor in zip(baseline.rows, drawn, baseline.without, baseline.floor, strict=True):
        cells.append((row.condition, row.caption or row.key))
        for place, picture in enumerate(pictures):
            cells.append((picture, f"drawn, seed {row.seed + place}"))
            if criterion.make:
                cells.append((criterion.found(picture), f"{criterion.name} of it: {criterion.value(row, picture):.3g}"))
        cells += [(without[0], f"without: {floor:.3g}"), (row.real, "real")]
    pictures, captions = zip(*cells, strict=True)
    columns = len(cells) // len(baseline.rows)
    widest = max(max(picture.shape) for picture in pictures)
    return sheet([Image.fromarray(p) for p in pictures], captions, columns, min(CELL_PX, widest))
