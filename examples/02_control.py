"""Two pictures that follow the edges of a photo, with one open studio: python examples/02_control.py"""

from pathlib import Path

from disegno import ControlUnit, Request, Result, Studio, generate
from disegno.engine.sheet import result_sheet

photo = Path(__file__).parent.parent / "src/disegno/data/diorama/examples/car_512.png"
studio = Studio()
unit = ControlUnit(name="canny", image=str(photo), strength=1.0, end=0.9)
for prompt in ("a red car on a city street", "a yellow car in the desert"):
    for event in generate(Request(prompt=prompt, seed=3, steps=8, controls=(unit,)), studio=studio):
        if isinstance(event, Result):
            path = Path("out") / f"example_control_{event.request.prompt.split()[1]}.png"
            path.parent.mkdir(exist_ok=True)
            result_sheet(event).save(path)
            print(path)
