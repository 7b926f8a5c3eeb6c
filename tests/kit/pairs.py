"""A small data set of real pairs: views of the built-in model's example picture, and their edges."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import make_params
from disegno.core.request import Scalar

CAR = Path(__file__).parents[2] / "src/disegno/data/diorama/examples/car_512.png"
CAPTION = "a red car on a city street"


def views(num: int, size: int) -> list[Image.Image]:
    """Return `num` different parts of the picture, square, `size` pixels wide."""
    with Image.open(CAR) as car:
        boxes = [(9 * n, 7 * n, 9 * n + 512 - 16 * n, 7 * n + 512 - 16 * n) for n in range(num)]
        return [car.convert("RGB").resize((size, size), Image.Resampling.BOX, box) for box in boxes]


def write_pairs(folder: Path, num: int, size: int, annotator: str = "canny", **params: Scalar) -> Path:
    """Return the folder, filled with pairs as ControlNet's tutorial lays them out."""
    module, lines = ANNOTATORS.load(annotator), []
    checked = make_params(module, params)
    for name in ("source", "target"):
        (folder / name).mkdir(parents=True)
    for n, view in enumerate(views(num, size)):
        Image.fromarray(module.annotate(np.asarray(view), checked)).save(folder / "source" / f"{n}.png")
        view.save(folder / "target" / f"{n}.png")
        lines.append(json.dumps({"source": f"source/{n}.png", "target": f"target/{n}.png", "prompt": CAPTION}))
    (folder / "prompt.json").write_text("\n".join(lines))
    return folder
