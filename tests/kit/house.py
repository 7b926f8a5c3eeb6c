"""A house with nothing but the built-in model: what A1111's orders are translated for where no file matters."""

from disegno.samplers.catalogue import resolve_names
from disegno.serving.a1111.house import House, Named

HOUSE = House(
    models=[Named("diorama")],
    vaes=[],
    controls=[],
    upscalers=["None", "Lanczos"],
    styles=[],
    names=resolve_names,
    draw=lambda: 7,
    settings={},
)
