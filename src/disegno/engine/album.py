"""The pictures that a request names, each read once: what is drawn, and what a record keeps, are the same bytes."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO

import numpy as np
from PIL import Image

from disegno.annotators.maps import Picture
from disegno.core.request import Request
from disegno.engine.pictures import Limits, bytes_of, decode, to_rgb

INPAINT = "inpaint"  # as an annotator's name: the picture with its masked part taken out


@dataclass
class Album:
    """Pictures by their source: a path, or a data URI."""

    limits: Limits = field(default_factory=Limits)
    _files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    _pictures: dict[str, Picture] = field(default_factory=dict[str, Picture])

    def channels(self, source: str) -> Picture:
        """Return the picture with its transparency if it has some, (h w 3) or (h w 4). Raises BadImage."""
        if source not in self._pictures:
            data, name = bytes_of(source, self.limits)
            self._pictures[source] = decode(data, name, self.limits)
            if not source.startswith("data:"):
                self._files[source] = data
        return self._pictures[source]

    def rgb(self, source: str) -> Picture:
        """Return the picture, (h w 3), laid on white where it is transparent. Raises BadImage."""
        return to_rgb(self.channels(source))

    def sources(self) -> dict[str, str]:
        """Return every file that was read as a data URI of its very bytes, by its path."""
        return {path: _uri(data) for path, data in self._files.items()}


def _uri(data: bytes) -> str:
    with Image.open(BytesIO(data)) as image:
        kind = Image.MIME.get(image.format or "", "image/png")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def needs_sources(request: Request) -> bool:
    """Return whether the request can only be made again with the pictures it names, not with its conditions alone."""
    masks = any(unit.region or unit.mask or unit.annotate == INPAINT for unit in request.controls)
    masks = masks or any(region.mask for region in request.regions)
    return bool(request.init or request.hires or request.depth or masks)


def with_sources(request: Request, sources: Mapping[str, str]) -> Request:
    """Return the request with data URIs in the place of the paths that these sources know."""

    def held(source: str | None) -> str | None:
        return sources.get(source, source) if source else source

    units = tuple(
        replace(unit, image=held(unit.image), mask=held(unit.mask), region=held(unit.region))
        for unit in request.controls
    )
    init = request.init
    if init is not None:
        init = replace(init, image=sources.get(init.image, init.image), mask=held(init.mask))
    regions = tuple(replace(region, mask=held(region.mask)) for region in request.regions)
    return replace(request, controls=units, init=init, depth=held(request.depth), regions=regions)


def with_mask(picture: Picture, mask: np.ndarray) -> Picture:
    """Return the picture (h w 3) with a mask (h w) as its fourth channel."""
    return np.concatenate([picture, mask[:, :, None]], axis=2)
