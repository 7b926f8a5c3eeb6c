"""What the model can do, measured: the table of its card.

python -m recipes.diorama.evaluate --pack RUN/world.zip --detector RUN/stages/detector/detector.safetensors --out REPORT
    [--clip RUN/clip/clip] [--model FOLDER] [--few] [--prompts 1000] [--pairs 48]
    [--card src/disegno/data/diorama/CARD.md]

Prompts and scenes are of a stream of their own, which nothing was trained on, with nouns that the model knows. Each
figure of the model stands beside the same figure of real scenes: what the detector, or the annotator, reaches at best.
Pictures are kept in REPORT/drawn under the model's sha256: an evaluation that was broken off goes on, and one with
another judge draws nothing again.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from disegno.core.files import write_atomically
from disegno.core.request import ControlUnit, Request
from disegno.core.result import Result
from disegno.core.settings import load_settings
from disegno.engine.generate import generate
from disegno.engine.sheet import sheet
from disegno.engine.studio import Studio
from disegno.training.clip_score import ClipScore, open_clip_score
from disegno.training.efficientnet import open_efficientnet
from disegno.training.features import kernel_distance
from disegno.training.measures import find_measure, measure_of
from disegno.training.trial import through_vae

from .clip_judge import GROUP, Retrieval, judged_pictures
from .compose import SEEDS
from .detector import Detector, detect, open_detector
from .newborn import built_in
from .scoring import Scores, Share, in_their_places, score
from .world.maps import MAPS
from .world.pack import Wardrobe, known_to, open_pack
from .world.render import Scene, compose

Picture = NDArray[np.uint8]
FOUND = {
    "object": "by a detector: a thing that was asked for is there",
    "colour": "a thing that is there has its colour",
    "count": "two and more of a kind are as many",
    "relation": "left of, right of, on: it stands so",
}
TOLD = {
    "caption": "by a small CLIP: its caption is the nearest of a hundred",
    "caption5": "its caption is among the five nearest of a hundred",
    "noun": "its first thing's name is the nearest of all things'",
    "thing": "its caption is nearer than one with another thing (chance 50 %)",
    "colour": "its caption is nearer than one with another colour (chance 50 %)",
}
PLACED = "with the drawing", "without it", "the real scene through the VAE", "of the way"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
DRAWN_AT_ONCE = 4
SHEET_PROMPTS, SHEET_COLUMNS, SHOWN_DRAWINGS = 24, 6, 4


@dataclass(frozen=True)
class Subject:
    """The model that is judged. `folder`: None for the built-in one. `kept`: a folder for its pictures.

    `few`: whether it draws in its few steps.
    """

    folder: Path | None
    studio: Studio
    kept: Path
    few: bool = False

    @property
    def about(self) -> dict[str, Any]:
        return json.loads(((self.folder or built_in()) / "model.json").read_text("utf-8"))

    @property
    def size(self) -> int:
        return int(self.about["defaults"]["width"])

    @property
    def name(self) -> str:
        return "diorama" if self.folder is None else str(self.folder)

    def draw(self, prompt: str, seed: int, control: ControlUnit | None = None) -> Picture:
        """Return the model's picture at its defaults, drawn or kept."""
        (picture,) = self.draw_all([prompt], seed, control)
        return picture

    def draw_all(self, prompts: Sequence[str], seed: int, control: ControlUnit | None = None) -> list[Picture]:
        """Return a picture for each prompt, of this seed and those that follow it, drawn at once or kept."""
        paths = [self._path(seed + k, control) for k in range(len(prompts))]
        if not all(path.is_file() for path in paths):
            for path, picture in zip(paths, self._drawn(prompts, seed, control), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, lambda temporary, shown=picture: shown.save(temporary, "PNG"))
        return [np.asarray(Image.open(path).convert("RGB")) for path in paths]

    def _path(self, seed: int, control: ControlUnit | None) -> Path:
        way = f"{'few-' if self.few else ''}{control.name if control else 'plain'}"
        return self.kept / f"{way}-{seed:06d}.png"

    def _drawn(self, prompts: Sequence[str], seed: int, control: ControlUnit | None) -> Sequence[Image.Image]:
        request = Request(
            prompts=tuple(prompts),
            batch=len(prompts),
            seed=seed,
            model=self.name,
            controls=() if control is None else (control,),
            few_steps=self.few,
        )
        (result,) = (event for event in generate(request, studio=self.studio) if isinstance(event, Result))
        return result.images


def fingerprint(folder: Path) -> str:
    """Return the first digits of the sha256 of a model's files; its card is none."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in {".safetensors", ".json"}):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def scenes_of(wardrobe: Wardrobe, count: int, size: int, first: int = 0) -> Iterator[Scene]:
    """Yield scenes of the test's stream."""
    for index in range(first, first + count):
        yield compose(wardrobe, SEEDS["test"], index, size)


def judged(detector: Detector, scenes: Sequence[Scene], pictures: Sequence[Picture]) -> Scores:
    """Return what the detector finds in pictures, held against the scenes' captions."""
    scores = Scores()
    for scene, found in zip(scenes, detect(detector, pictures), strict=True):
        scores = score(scores, scene.facts, found)
    return scores


@dataclass(frozen=True)
class Consistency:
    """How well pictures agree with a drawing, by the measure of its annotator.

    `placed`: by a detector, the things that stand where the drawing has them: with it, without it, in the real scenes.
    """

    condition: str
    measure: str
    control: float
    without: float
    real: float
    pairs: int
    placed: tuple[Share, ...] = ()

    @property
    def followed(self) -> float:
        """Return how far pictures come with the control: 0 is without it, 1 the real scenes."""
        return _way(self.control, self.without, self.real)


def _way(control: float, without: float, real: float) -> float:
    return (control - without) / (real - without) if real != without else 0.0


# What can be seen again in a picture without a net. What cannot (segments, depth, normals, boxes, the flat twin) is
# judged by how like the picture is to the scene that the drawing is of.
SEEN_AGAIN = (
    *("canny", "soft-edge", "scribble", "grayscale", "outpainting"),
    *("palette", "line-art", "inpainting-brush", "pixelate"),
)


def consistency(
    subject: Subject, scenes: Sequence[Scene], wardrobe: Wardrobe, condition: str, detector: Detector | None = None
) -> Consistency:
    """Return how well the model follows a condition."""
    seen_again = condition in SEEN_AGAIN
    measure = measure_of(condition) if seen_again else find_measure("ssim")
    backbone = subject.studio.open_model(subject.studio.find_model(subject.name), subject.studio.memory)
    rows, placed = [], [Share(), Share(), Share()]
    for scene in scenes:
        wanted = MAPS[condition](scene, wardrobe)
        unit = ControlUnit(name=condition, image=data_uri(wanted), annotate="none")
        seed = scene.seed[1]
        drawn = (
            subject.draw(scene.caption, seed, unit),
            subject.draw(scene.caption, seed),
            through_vae(scene.image, backbone),
        )
        if detector is not None:
            found = detect(detector, drawn)
            placed = [in_their_places(share, scene, each) for share, each in zip(placed, found, strict=True)]
        aim, again = scene.image, drawn
        if seen_again:
            aim, again = wanted, [MAPS[condition](replace(scene, image=picture), wardrobe) for picture in drawn]
        rows.append([measure(aim, each) for each in again])
    control, without, real = np.mean(rows, axis=0).tolist()
    title = measure.title if seen_again else f"{measure.title} to the true scene"
    return Consistency(condition, title, control, without, real, len(rows), tuple(placed) if detector else ())


def data_uri(picture: Picture) -> str:
    """Return a picture as a data URI."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ---- the report


@dataclass(frozen=True)
class Report:
    """All figures, each of the model's pictures, of real scenes, and of these as the model's autoencoder leaves them.

    `found`: by the detector, `told`: by the CLIP; empty without one. `kernel`: distances to the scenes; of the real
    ones to others.
    """

    prompts: int
    kernel: tuple[float, float, float]
    conditions: tuple[Consistency, ...] = ()
    found: tuple[Scores, ...] = ()
    told: tuple[Retrieval, ...] = ()


@dataclass(frozen=True)
class Judges:
    """Who says what is in a picture."""

    detector: Detector | None = None
    clip: ClipScore | None = None


def evaluate(
    subject: Subject, judges: Judges, wardrobe: Wardrobe, prompts: int, pairs: int, out: Path
) -> Report:  # fmt: skip
    """Return the report, and write sheets of the first prompts and drawings, unselected, with what was asked."""
    out.mkdir(parents=True, exist_ok=True)
    scenes = list(scenes_of(wardrobe, prompts, subject.size))
    drawn: list[Picture] = []
    for first in range(0, prompts, DRAWN_AT_ONCE):
        some = scenes[first : first + DRAWN_AT_ONCE]
        drawn += subject.draw_all([scene.caption for scene in some], some[0].seed[1])
        print(f"prompt {len(drawn)}/{prompts}: {some[-1].caption}", flush=True)
    write_sheet(out / "prompts.png", scenes[:SHEET_PROMPTS], drawn[:SHEET_PROMPTS])
    backbone = subject.studio.open_model(subject.studio.find_model(subject.name), subject.studio.memory)
    real = [scene.image for scene in scenes]
    ways = drawn, real, [through_vae(picture, backbone) for picture in real]
    others = [scene.image for scene in scenes_of(wardrobe, prompts, subject.size, first=prompts)]
    net = open_efficientnet()
    features = [net.features(pictures) for pictures in (*ways, others)]
    distances = [kernel_distance(features[way], features[to]) for way, to in ((0, 1), (1, 3), (2, 1))]
    names = [name for name in MAPS if pairs and name in subject.about.get("conditions", {})]
    if names:
        write_conditions(out / "conditions.png", subject, scenes[:SHOWN_DRAWINGS], wardrobe)
    detector, clip, group = judges.detector, judges.clip, math.gcd(prompts, GROUP)
    conditions = tuple(consistency(subject, scenes[:pairs], wardrobe, name, detector) for name in names)
    return Report(
        prompts,
        (distances[0], distances[1], distances[2]),
        conditions,
        tuple(judged(detector, scenes, pictures) for pictures in ways) if detector else (),
        tuple(judged_pictures(clip, scenes, pictures, group) for pictures in ways) if clip else (),
    )


def write_conditions(path: Path, subject: Subject, scenes: Sequence[Scene], wardrobe: Wardrobe) -> None:
    """Write a row for each of the model's conditions that the world has: drawings, each beside the picture of it."""
    cells: list[tuple[Picture, str]] = []
    for condition in (name for name in subject.about.get("conditions", {}) if name in MAPS):
        for scene in scenes:
            wanted = MAPS[condition](scene, wardrobe)
            unit = ControlUnit(name=condition, image=data_uri(wanted), annotate="none")
            cells += [(wanted, condition), (subject.draw(scene.caption, scene.seed[1], unit), scene.caption)]
    if cells:
        pictures = [Image.fromarray(picture) for picture, _ in cells]
        sheet(pictures, [words for _, words in cells], 2 * len(scenes), subject.size).save(path, optimize=True)


def write_sheet(path: Path, scenes: Sequence[Scene], pictures: Sequence[Picture], side: int = 160) -> None:
    """Write pictures with their prompts, and their seeds."""
    rows = -(-len(scenes) // SHEET_COLUMNS)
    page = Image.new("RGB", (SHEET_COLUMNS * (side + 8), rows * (side + 52)), "white")
    pen = ImageDraw.Draw(page)
    for k, (scene, picture) in enumerate(zip(scenes, pictures, strict=True)):
        x, y = k % SHEET_COLUMNS * (side + 8), k // SHEET_COLUMNS * (side + 52)
        page.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), (x, y))
        for line, words in enumerate(textwrap.wrap(scene.caption, 27)[:4]):
            pen.text((x, y + side + 1 + 11 * line), words, fill="black")
    page.save(path, optimize=True)


def table(report: Report) -> str:
    """Return the report in Markdown."""
    titles = "the model's pictures", "real scenes", "real scenes through the VAE"
    lines = [_line(f"in {report.prompts} prompts of the test stream", *titles), _line(*["---"] * 4)]
    for name, words in FOUND.items():
        lines += [_line(words, *(str(getattr(each, name)) for each in report.found))] if report.found else []
    for name, words in TOLD.items():
        lines += [_line(words, *(f"{100 * getattr(each, name):.1f} %" for each in report.told))] if report.told else []
    lines.append(_line("distance KID-EffLite0 (not FID)", *(f"{distance:.3f}" for distance in report.kernel)))
    if report.conditions:
        lines += [
            "",
            "| condition | measure | with it | without it | the real scene through the VAE | of the way | pairs |",
        ]
        lines.append("|---|---|---|---|---|---|---|")
    for each in report.conditions:
        figures = " | ".join(f"{value:.2f}" for value in (each.control, each.without, each.real))
        lines.append(f"| {each.condition} | {each.measure} | {figures} | {100 * each.followed:.0f} % | {each.pairs} |")
    if placed := [each for each in report.conditions if each.placed]:
        lines += ["", _line("by the detector: a thing is where the drawing has it", *PLACED), _line(*["---"] * 5)]
        for each in placed:
            way = _way(*(share.part for share in each.placed))
            lines.append(_line(each.condition, *map(str, each.placed), f"{100 * way:.0f} %"))
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def put_into(card: Path, figures: str) -> None:
    """Replace what stands between the marks of a card; where there are none, add them at its end."""
    text = card.read_text("utf-8")
    part = f"{BEGIN}\n{figures}{END}\n"
    if BEGIN not in text:
        card.write_text(f"{text.rstrip()}\n\n{part}", "utf-8")
        return
    before, _, rest = text.partition(BEGIN)
    card.write_text(before + part + rest.partition(f"{END}\n")[2], "utf-8")


def main() -> None:
    """Evaluate from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pack", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--detector", type=Path, help="unset: objects, colours, counts and relations are not judged")
    parser.add_argument("--clip", type=Path, help="of recipes/diorama/clip.py: judges pictures by their captions")
    parser.add_argument("--model", type=Path, help="a folder; unset: the built-in model")
    parser.add_argument("--few", action="store_true", help="draw in the model's few steps")
    parser.add_argument("--card", type=Path, help="a Markdown file to put the table into")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=48, help="for each condition; 0: conditions are not judged")
    args = parser.parse_args()
    folder = args.model or built_in()
    subject = Subject(args.model, Studio(load_settings()), args.out / "drawn" / fingerprint(folder), args.few)
    wardrobe = known_to(folder / "model.json", open_pack(args.pack))
    judges = Judges(args.detector and open_detector(args.detector), args.clip and open_clip_score(args.clip))
    report = evaluate(subject, judges, wardrobe, args.prompts, args.pairs, args.out)
    (args.out / "report.json").write_text(json.dumps(asdict(report), indent=1) + "\n", "utf-8")
    print(table(report))
    if args.card is not None:
        put_into(args.card, table(report))


if __name__ == "__main__":
    main()
