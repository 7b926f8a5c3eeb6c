"""An evaluation as a page, and its pictures as a sheet."""

import numpy as np
from PIL import Image

from disegno.engine.sheet import sheet
from disegno.training import page
from disegno.training.base import Picture
from disegno.training.curves import Curve, chart
from disegno.training.evaluation import Evaluation
from disegno.training.findings import judged, names_of, rows_of_table
from disegno.training.machine import duration
from disegno.training.scores import AGAINST, CONTROL, REAL, WITHOUT, Score

SHOWN_ROWS = 8
CELL_PX = 192
STYLES = {CONTROL: "c1", AGAINST: "c2", WITHOUT: "faint", REAL: "c2 dashed"}
MAX_CHARTS = 4

_OF_TABLE = "Mean and standard error over the pairs, widened where they are few. An arrow says which way is better."
_OF_CHART = "Each way's pictures, sorted: how many reach which value."
_OF_SHEET = "A line a pair, the first of all: condition, pictures and their own drawings, without the control, real."


def evaluation_page(found: Evaluation) -> str:
    """Return the page: verdict, table, curves, pictures, notes."""
    state, words = judged(found)
    head, lines = rows_of_table(found)
    curves = [_sorted_chart(found, score) for score in found.scores if score.rows][:MAX_CHARTS]
    asked = {
        "control": found.request.control,
        "against": found.request.against or "",
        "data": f"{found.request.data}, {len(found.rows)} pairs",
        "model": found.request.model,
        "drawn again by": found.criterion.name if found.criterion.make else "nothing: compared with the real pictures",
        "agreement of the data's conditions": f"{100 * found.agreement:.0f} %",
        "seed": str(found.request.seed),
        **found.environment,
        "time": duration(found.seconds),
    }
    notes = "".join(f"<p>{page.escaped(note)}</p>" for note in found.notes)
    parts = [
        page.verdict_box(state, words),
        page.section("Figures", page.table(head, lines) + page.note(_OF_TABLE)),
        page.charts(curves, [_OF_CHART] * len(curves)),
        page.section("Pictures", page.picture(evaluation_sheet(found), _OF_SHEET)),
        page.section("Notes", notes),
        page.section("How it was measured", page.words({name: word for name, word in asked.items() if word})),
    ]
    return page.page(f"Evaluating {names_of(found)[CONTROL]}", parts)


def _sorted_chart(found: Evaluation, score: Score) -> str:
    """Return each way's values in rising order, over the share of the pictures."""
    curves: list[Curve] = []
    for way, name in names_of(found).items():
        values = np.sort(score.rows.get(way, np.array([])))
        shares = [(n + 0.5) / len(values) * 100 for n in range(len(values))]
        curves.append(Curve(name, list(zip(shares, values.tolist(), strict=True)), STYLES.get(way, "faint")))
    arrow = "more" if score.better == "higher" else "less"
    title = f"{score.title[0].upper()}{score.title[1:]}, {arrow} is better"
    return chart(title, curves, x_title="% of the pictures")


def evaluation_sheet(found: Evaluation) -> Image.Image:
    """Return a grid, a pair a line: condition, each way's picture and its own drawing, the real picture."""
    cells: list[tuple[Picture, str]] = []
    names, criterion = names_of(found), found.criterion
    for n, row in enumerate(found.rows[:SHOWN_ROWS]):
        cells.append((row.condition, row.caption or row.key))
        for way in (CONTROL, AGAINST, WITHOUT):
            if way in found.drawn:
                picture = found.drawn[way][n][0]
                cells.append((picture, names[way]))
                if criterion.make:
                    cells.append((criterion.found(picture), f"{criterion.value(row, picture):.3g}"))
        cells.append((row.real, "real"))
    pictures, captions = zip(*cells, strict=True)
    columns = len(cells) // min(SHOWN_ROWS, len(found.rows))
    widest = max(max(picture.shape) for picture in pictures)
    return sheet([Image.fromarray(p) for p in pictures], captions, columns, min(CELL_PX, widest))
