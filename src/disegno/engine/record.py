"""A picture that remembers how it was made: the full Request in a PNG text chunk, and back.

The chunk `disegno` holds JSON: the request as it was asked, what each control was shown (as data URIs, so that a
moved or changed file does not matter), which image of the batch this is, and the environment that decides the bits.
Where a picture was changed, enlarged, or drawn in regions, the files that the request names are kept instead, whole.
"""

import base64
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from disegno.core.errors import BadImage
from disegno.core.request import Request, from_json, to_json
from disegno.core.result import Result
from disegno.engine.album import needs_sources, with_sources
from disegno.weights.save import write_atomically

CHUNK = "disegno"
MAX_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Record:
    """How a picture was made. `image` is its place in the batch; `conditions` are data URIs, one a control.

    `sources`: where the conditions are not enough, the files that the request names, by path, as data URIs.
    `prompts`, `negatives`: each image's own, in full; empty in pictures of version 0.1.0.
    """

    request: Request
    image: int
    conditions: tuple[str, ...]
    environment: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict[str, str])
    prompts: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()

    def replay(self) -> Request:
        """Return the request that makes the same picture wherever its drawings are now: they are inside it.

        So are the styles and the lines of wildcards that its prompts were made of.
        """
        request = self._worded()
        if needs_sources(request):
            return with_sources(request, self.sources)
        pairs = zip(request.controls, self.conditions, strict=True)
        units = tuple(replace(unit, image=uri, annotate="none", params={}) for unit, uri in pairs)
        return replace(request, controls=units)

    def _worded(self) -> Request:
        """Return the request with its images' own prompts in full, where they are not simply its prompt."""
        asked = {self.request.prompt}, {self.request.negative}
        if not self.prompts or ((set(self.prompts), set(self.negatives)) == asked and not self.request.styles):
            return self.request
        return replace(self.request, prompts=self.prompts, negatives=self.negatives, styles=())


def data_uri(picture: Image.Image) -> str:
    """Return the picture as a PNG data URI, lossless."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def png_bytes(result: Result, image: int) -> bytes:
    """Return image number `image` of the result as PNG bytes with its record."""
    record = {
        "request": json.loads(to_json(result.request)),
        "image": image,
        "conditions": [] if result.sources else [data_uri(condition) for condition in result.conditions],
        "sources": result.sources,
        "prompts": result.prompts,
        "negatives": result.negatives,
        "environment": result.environment,
    }
    info = PngImagePlugin.PngInfo()
    info.add_itxt(CHUNK, json.dumps(record, ensure_ascii=False), zip=True)
    info.add_itxt("Description", result.request.prompt)
    info.add_itxt("Software", f"Disegno {result.environment.get('disegno', '')}".strip())
    buffer = io.BytesIO()
    result.images[image].save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def write_png(path: Path, result: Result, image: int) -> None:
    """Write image number `image` of the result, with its record, whole or not at all. Raises ResourceError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = png_bytes(result, image)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _chunk(path: Path) -> dict[str, Any]:
    try:
        with Image.open(path) as picture:
            picture.load()
            text = getattr(picture, "text", {}).get(CHUNK)
    except (OSError, ValueError, SyntaxError) as error:
        raise BadImage(
            f"{path} cannot be read as a picture: {error}. Give a PNG file that this program made."
        ) from error
    if not text:
        raise BadImage(f"{path} carries no request of this program. Give a PNG file that `disegno generate` wrote.")
    if len(text) > MAX_CHUNK_BYTES:
        raise BadImage(f"{path} carries {len(text)} bytes of text; at most {MAX_CHUNK_BYTES} are read.")
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadImage(f"{path} carries a damaged request: {error}.") from error


def read(path: Path) -> Record:
    """Return how the picture at `path` was made. Raises BadImage or RequestError."""
    found = _chunk(path)
    try:
        request = from_json(json.dumps(found["request"]))
        return Record(
            request,
            int(found["image"]),
            tuple(found["conditions"]),
            dict(found["environment"]),
            dict(found.get("sources", {})),
            tuple(found.get("prompts", ())),
            tuple(found.get("negatives", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadImage(f"{path} carries a damaged request: {error!r}.") from error
