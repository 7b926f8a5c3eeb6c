"""What a worker does for each kind of job: generators of phases to be stepped, and of progress, that return an outcome.

They run in the worker's process. Their files are written into the attempt's own folder; the server publishes them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from PIL import Image
from pydantic import TypeAdapter

from disegno.core.plot import Plot
from disegno.core.request import Request, to_json
from disegno.core.result import Progress, Result
from disegno.engine.album import Album
from disegno.engine.concrete import concrete
from disegno.engine.generate import Phase, draw
from disegno.engine.plot import Plotted
from disegno.engine.record import png_bytes
from disegno.engine.studio import Studio
from disegno.serving.bounds import check_cost
from disegno.serving.kinds import AnnotateRequest, CaptionRequest, UpscaleRequest
from disegno.serving.pictures import png
from disegno.serving.settings import Limits
from disegno.serving.sheets import SheetRequest, check_sheet_cost, plan_of
from disegno.serving.wire import Looked, Moved
from disegno.serving.words import Outcome, StoredFile

Running = Generator[Phase | Progress | Moved | Looked, None, Outcome]


@dataclass(frozen=True)
class Bench:
    """Where a job is carried out. `folder`: this attempt's own; `keep`: outlives the attempt.

    `data_roots`: folders below which data sets lie; `job`: its id; `uploads`: the folder of what clients have sent.
    `finish`: set where it is to end with what there is.
    """

    studio: Studio
    limits: Limits
    folder: Path
    keep: Path
    data_roots: tuple[Path, ...] = ()
    job: str = ""
    uploads: Path = Path()
    finish: Event = field(default_factory=Event)

    def write(self, name: str, role: str, content: bytes, media_type: str = "image/png") -> StoredFile:
        """Return the file, which is on the disk now."""
        with (self.folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return StoredFile(name, role, media_type, len(content), hashlib.sha256(content).hexdigest())

    def copy(self, file: Path, role: str, media_type: str) -> StoredFile:
        """Return a copy of a file, or the file where it lies here already; it may be gigabytes long."""
        target = self.folder / file.name
        if file != target:
            shutil.copyfile(file, target)
        with target.open("rb+") as copied:
            os.fsync(copied.fileno())
            digest = hashlib.file_digest(copied, "sha256").hexdigest()
        return StoredFile(file.name, role, media_type, target.stat().st_size, digest)


def generate(request: Request, bench: Bench) -> Running:
    """Draw pictures: N.png are the images with their records, condition-N.png what each control was shown."""
    album = Album(bench.studio.limits)
    asked = concrete(bench.studio.in_one_spelling(request), bench.studio.backbone_of(request), album)
    check_cost(asked, bench.limits)  # with the sizes and steps that were left to the model and to the pictures
    result = yield from draw(asked, bench.studio, album)
    files = [bench.write(f"{i}.png", "image", png_bytes(result, i)) for i in range(len(result.images))]
    shown = [png(condition) for condition in result.conditions]
    files += [bench.write(f"condition-{i}.png", "condition", content) for i, content in enumerate(shown)]
    return Outcome(tuple(files), result.warnings, _facts(result))


def sheet(asked: SheetRequest, bench: Bench) -> Running:
    """Draw many pictures of one request: sheet.png shows them all, N.png is each, with its record."""
    plot, results, whole = plan_of(asked), list[Result](), list[Request]()
    for n, cell in enumerate(plot.cells):
        if n == len(whole):  # what was left to a model is known once it is open; its cells follow each other
            whole += _concrete(plot, cell.request.model, bench)
            check_sheet_cost(whole, bench.limits)
        yield Progress(0, whole[n].steps or 0, "drawing", part=n, num_parts=len(plot.cells))
        if results and bench.finish.is_set():  # said while the last one was decoded
            break
        results.append((yield from draw(cell.request, bench.studio, Album(bench.studio.limits))))
        if bench.finish.is_set():
            break
    page = bench.write("sheet.png", "sheet", png(Plotted(plot, tuple(results)).page()))
    shown = [(result, i) for result in results for i in range(len(result.images))]
    files = [bench.write(f"{n}.png", "image", png_bytes(*each)) for n, each in enumerate(shown)]
    facts: dict[str, Any] = {
        "request": _told(asked.request),
        "labels": [list(labels) for labels in plot.labels],
        "places": [list(cell.place) for cell in plot.cells[: len(results)]],
        "seeds": [str(seed) for result in results for seed in result.seeds],
        "prompts": [prompt for result in results for prompt in result.prompts],
    }
    warnings = dict.fromkeys(warning for result in results for warning in result.warnings)
    return Outcome((page, *files), tuple(warnings), facts)


def _concrete(plot: Plot, model: str, bench: Bench) -> list[Request]:
    """Return the plot's requests to this model, nothing left open. Raises Refused where one of them costs too much."""
    some = [cell.request for cell in plot.cells if cell.request.model == model]
    album = Album(bench.studio.limits)
    studio = bench.studio
    whole = [concrete(studio.in_one_spelling(each), studio.backbone_of(each), album) for each in some]
    for each in whole:
        check_cost(each, bench.limits)
    return whole


def _told(request: Request) -> dict[str, Any]:
    """Return a request's fields without its pictures, which are in the request that was sent."""
    fields = json.loads(to_json(request))
    for holder, key in _pictures_of(fields):
        holder[key] = "data:image/png;base64,..."
    return fields


def _facts(result: Result) -> dict[str, Any]:
    return {
        "request": _told(result.request),
        "seeds": [str(seed) for seed in result.seeds],
        "prompts": list(result.prompts),
        "negatives": list(result.negatives),
        "labels": dict(result.labels),
        "environment": result.environment,
        "timing": asdict(result.timing),
    }


def _pictures_of(value: Any) -> list[tuple[Any, Any]]:
    """Return where a JSON value holds pictures: pairs of a container and a key."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    found = [(value, key) for key, item in items if isinstance(item, str) and item.startswith("data:")]
    return found + [pair for _, item in items for pair in _pictures_of(item)]


def annotate(request: AnnotateRequest, bench: Bench) -> Running:
    """Draw what an annotator sees: drawing.png."""
    from disegno.annotators import ANNOTATORS
    from disegno.annotators.base import annotate_at, make_params
    from disegno.engine.pictures import fit, pixel_perfect_resolution, read_picture

    module = ANNOTATORS.load(request.name)
    params = make_params(module, request.params)
    picture = read_picture(request.image, bench.studio.limits)
    yield Progress(0, 1, "annotating")
    canvas = (request.width, request.height) if request.width and request.height else None
    own = pixel_perfect_resolution(picture, *canvas, request.resize) if canvas else None
    drawing = annotate_at(module, picture, params, request.resolution or own, request.back and not canvas)
    if canvas:
        drawing = fit(drawing, *canvas, request.resize)
    file = bench.write("drawing.png", "image", png(Image.fromarray(drawing)))
    facts = {"annotator": request.name, "params": TypeAdapter(type(params)).dump_python(params, mode="json")}
    return Outcome((file,), (), facts)


def upscale(request: UpscaleRequest, bench: Bench) -> Running:
    """Make a picture larger: upscaled.png."""
    from disegno.engine.pictures import read_picture
    from disegno.engine.upscale import find_upscaler

    picture = Image.fromarray(read_picture(request.image, bench.studio.limits))
    names = [request.upscaler, *([request.second] if request.second is not None else [])]
    yield Progress(0, len(names), "enlarging")
    larger: list[Image.Image] = []
    for name in names:
        larger.append(find_upscaler(name, bench.studio, cleans=True)(picture, request.width, request.height))
        yield Progress(len(larger), len(names), "enlarging")
    out = Image.blend(larger[0], larger[1], request.weight) if len(larger) == 2 else larger[0]
    if request.cut_width and request.cut_height:
        out = _middle(out, request.cut_width, request.cut_height)
    return Outcome((bench.write("upscaled.png", "image", png(out)),))


def caption(request: CaptionRequest, bench: Bench) -> Running:
    """Say what a picture shows: the fact `caption`."""
    from disegno.engine.pictures import read_picture

    picture = read_picture(request.image, bench.studio.limits)
    yield Progress(0, 1, "looking")
    captioner = bench.studio.captioner(request.captioner)
    facts: dict[str, Any] = {"caption": captioner.caption(picture, request.beginning), "captioner": captioner.name}
    return Outcome((), (), facts)


def _middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
