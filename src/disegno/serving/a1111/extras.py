"""A1111's extras: pictures made larger with one upscaler or a blend of two, and what is said of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disegno.core.errors import UnknownName
from disegno.serving.a1111.coerce import Json, shortened
from disegno.serving.a1111.errors import Fault, Path, WireError
from disegno.serving.a1111.fields import Field, Given, read_fields
from disegno.serving.a1111.images import read_image

_NO_RESTORER = "no face restorer is built in"
MAX_SIDE_PX = 8192
MAX_IMAGES = 64

EXTRAS = (
    Field("resize_mode", "int", 0, low=0, high=1, means="0: by a factor, 1: to a size"),
    Field("upscaling_resize", "float", 2, low=0.01, high=8, means="the factor"),
    Field("upscaling_resize_w", "int", 512, low=1, high=MAX_SIDE_PX, means="the width, of mode 1"),
    Field("upscaling_resize_h", "int", 512, low=1, high=MAX_SIDE_PX, means="the height, of mode 1"),
    Field("upscaling_crop", "bool", True, means="what is over is cut off, of mode 1"),
    Field("upscaler_1", "str", "None", means="the upscaler; None is a filter"),
    Field("upscaler_2", "str", "None", means="another one, blended in"),
    Field("extras_upscaler_2_visibility", "float", 0, low=0, high=1, means="how much of the second one"),
    Field("show_extras_results", "bool", True, unused="the pictures are always returned", off=(True,)),
    Field("gfpgan_visibility", "float", 0, low=0, high=1, unused=_NO_RESTORER),
    Field("codeformer_visibility", "float", 0, low=0, high=1, unused=_NO_RESTORER),
    Field("codeformer_weight", "float", 0, low=0, high=1, unused=_NO_RESTORER),
    Field("upscale_first", "bool", False, unused="no face restorer is built in, so there is no order"),
)
SINGLE = (*EXTRAS, Field("image", "str", means="the picture"))
BATCH = (*EXTRAS, Field("imageList", "list", means="the pictures: {data, name} each"))


@dataclass(frozen=True)
class Enlargement:
    """How pictures are made larger. `scale`, or `size` with or without cropping; `second`: blended in by `weight`."""

    upscaler: str
    second: str | None
    weight: float
    scale: float
    size: tuple[int, int] | None
    crop: bool

    def target(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int] | None]:
        """Return the size that a picture is enlarged to, and the size that its middle is cut to. Raises WireError."""
        scale = self.scale if self.size is None else max(self.size[0] / width, self.size[1] / height)
        # A1111 parity: what is enlarged has sides that are multiples of 8
        sides = [max(8, math.floor(side * scale / 8) * 8) for side in (width, height)]
        if self.size is not None and self.crop:  # a cut-off remainder must not leave it smaller than asked
            sides = [max(side, wanted) for side, wanted in zip(sides, self.size, strict=True)]
        if max(sides) > MAX_SIDE_PX:
            raise WireError(f"The picture would become {sides[0]} x {sides[1]}; at most {MAX_SIDE_PX} pixels a side.")
        return (sides[0], sides[1]), self.size if self.crop else None

    @property
    def text(self) -> str:
        """Return what A1111 writes into the picture about it."""
        entries: list[tuple[str, object]] = []
        if self.size is None:
            entries.append(("Postprocess upscale by", float(self.scale)))
        else:
            entries.append(("Postprocess upscale to", f"{self.size[0]}x{self.size[1]}"))
        entries.append(("Postprocess upscaler", self.upscaler))
        if self.second is not None:
            entries.append(("Postprocess upscaler 2", self.second))
        return ", ".join(f"{name}: {value}" for name, value in entries)


@dataclass(frozen=True)
class Extras:
    """A request of extras: the pictures as data URIs, and what is done with them."""

    images: tuple[str, ...]
    how: Enlargement
    warnings: tuple[str, ...]


def translate_extras(body: Mapping[str, Json], many: bool, upscalers: Sequence[str]) -> Extras:
    """Return what is asked of extra-single-image, or of extra-batch-images. Raises WireError."""
    given = read_fields(BATCH if many else SINGLE, body)
    images = _batch(given) if many else (_required(given.values["image"], ("image",)),)
    second, weight = given.text("upscaler_2"), given.number("extras_upscaler_2_visibility")
    to_size = given.whole("resize_mode") == 1
    size = given.whole("upscaling_resize_w"), given.whole("upscaling_resize_h")
    how = Enlargement(
        upscaler=_upscaler(given.text("upscaler_1"), "upscaler_1", upscalers),
        second=_upscaler(second, "upscaler_2", upscalers)
        if second.lower() not in ("", "none") and weight > 0
        else None,
        weight=weight,
        scale=given.number("upscaling_resize"),
        size=size if to_size else None,
        crop=given.flag("upscaling_crop"),
    )
    return Extras(images, how, given.warnings)


def _batch(given: Given) -> tuple[str, ...]:
    rows = given.items("imageList")
    if not 0 < len(rows) <= MAX_IMAGES:
        raise WireError.of_fields(Fault(("imageList",), f"from 1 to {MAX_IMAGES} images (given: {len(rows)})"))
    images: list[str] = []
    for i, row in enumerate(rows):
        data = row.get("data") if isinstance(row, dict) else row
        images.append(_required(data, ("imageList", i, "data")))
    return tuple(images)


def _required(image: Json, path: Path) -> str:
    found = read_image(image, path)
    if found is None:
        raise WireError.of_fields(
            Fault(path, "Image not found: send base64 of a picture's file", "value_error.missing")
        )
    return found


def _upscaler(name: str, field: str, known: Sequence[str]) -> str:
    by_lower = {upscaler.lower(): upscaler for upscaler in known}
    if (name or "None").lower() not in by_lower:
        error = UnknownName.of("upscaler", name[:100], known)
        raise WireError.of_fields(Fault((field,), f"could not find upscaler named {shortened(name)}. {error}"))
    return by_lower[(name or "None").lower()]


def html_info(texts: Sequence[str]) -> str:
    """Return the words of an answer as A1111 wraps them."""
    return "".join(f"<p>{text}</p>" for text in texts)
