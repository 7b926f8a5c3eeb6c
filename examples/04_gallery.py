"""The gallery of `make demo`, on one sheet: python examples/04_gallery.py

A sentence; the same with edges, with a segmentation, with both at once; and four seeds of one drawing.
"""

from pathlib import Path

from PIL import Image

from disegno import ControlUnit, Request, Result, Studio, generate
from disegno.engine.sheet import sheet

drawings = Path(__file__).parent.parent / "src/disegno/data/diorama/examples"
edges = ControlUnit(name="canny", image=str(drawings / "car_canny.png"), annotate="none")
segments = ControlUnit(name="segmentation", image=str(drawings / "car_segmentation.png"), annotate="none")
prompt, studio = "a red car on a city street", Studio()
shown = [Image.open(drawings / f"car_{name}.png").convert("RGB") for name in ("canny", "segmentation")]
words = ["the edges", "the segments"]

for label, seed, batch, controls in (
    ("the sentence alone", 1, 1, ()),
    ("with edges", 1, 1, (edges,)),
    ("with segments", 1, 1, (segments,)),
    ("with both", 1, 1, (edges, segments)),
    ("edges, seed", 11, 4, (edges,)),
):
    request = Request(prompt=prompt, seed=seed, batch=batch, controls=controls)
    for event in generate(request, studio=studio):
        if isinstance(event, Result):
            shown += event.images
            words += [f"{label} {each}" if batch > 1 else label for each in event.seeds]

Path("out").mkdir(exist_ok=True)
sheet([picture.resize((192, 192), Image.Resampling.LANCZOS) for picture in shown], words, columns=5).save(
    "out/demo.png", optimize=True
)
print(f'out/demo.png: "{prompt}"')
