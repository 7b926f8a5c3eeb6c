"""What annotators see in a picture, on one sheet: python examples/03_annotate.py"""

from pathlib import Path

from PIL import Image

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import annotate_at, make_params
from disegno.engine.pictures import read_picture
from disegno.engine.sheet import sheet

photo = read_picture(Path(__file__).parent.parent / "src/disegno/data/diorama/examples/car_512.png")
names = ["canny", "soft-edge", "line-art", "scribble", "palette", "segments"]
maps = []
for name in names:
    module = ANNOTATORS.load(name)
    maps.append(Image.fromarray(annotate_at(module, photo, make_params(module, {}), 512)))
Path("out").mkdir(exist_ok=True)
sheet(maps, names, columns=3).save("out/example_annotate.png")
print("out/example_annotate.png")
