"""A picture that remembers how it was made: the full Request in a PNG text chunk, and back.

The chunk `disegno` holds JSON: the request as it was asked, what each control was shown (so that a moved or changed
file does not matter), which image of the batch this is, and the environment that decides the bits. Where a picture was
changed, enlarged, or drawn in regions, the files that the request names are kept instead, whole.

Pictures lie in private chunks (`dgPc`) after the image, and the JSON names them by number: Pillow refuses to open a
file with more than 1 MiB of text, so a client that sent a photograph could not have read its answer.
"""

import base64
import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from PIL import Image, PngImagePlugin

from disegno.core.errors import BadImage
from disegno.core.request import FILELESS, SEEDS, ControlUnit, Request, Scalar, from_json, make_request, to_json
from disegno.core.result import Result
from disegno.core.told import Told, models_of, told_of
from disegno.engine.album import needs_sources, with_sources
from disegno.engine.embedded import KEY as PARAMETERS
from disegno.engine.embedded import MAX_CHARACTERS, PILLOW_TRIPS, parameters_of, text_in

CHUNK = "disegno"
PICTURE_CHUNK = b"dgPc"  # a data URI's beginning, a zero, and the picture's bytes
_STOWED = "picture:"  # with a number: a data URI that lies in a chunk of its own
MAX_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Record:
    """How a picture was made. `image` is its place in the batch; `conditions` are data URIs, one a control.

    `sources`: where the conditions are not enough, the files that the request names, by path, as data URIs.
    `prompts`, `negatives`: each image's own, in full; empty in pictures of version 0.1.0. `models`: what
    else its model may be found by, the surest first. `told`: of a picture of another program, what its text says.
    """

    request: Request
    image: int
    conditions: tuple[str, ...]
    environment: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict[str, str])
    prompts: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    told: Told | None = None

    def replay(self) -> Request:
        """Return the request that makes the same picture wherever its drawings are now: they are inside it.

        So are the styles and the lines of wildcards that its prompts were made of. Raises BadImage.
        """
        request = self._worded()
        if needs_sources(request):
            return with_sources(request, self.sources)
        if len(request.controls) != len(self.conditions):
            num = f"{len(self.conditions)} drawings for {len(request.controls)} controls"
            raise BadImage(f"The picture carries a damaged request: {num}. Give the file as it was written.")
        pairs = zip(request.controls, self.conditions, strict=True)
        units = tuple(replace(unit, image=uri, annotate="none", params=_own_params(unit)) for unit, uri in pairs)
        return replace(request, controls=units)

    def alone(self) -> "Record":
        """Return how this image of a batch is made by itself: with its own seeds and words.

        It is the same picture but for its last bits, which another number of images may change.
        """
        request, n = self.request, self.image

        def own(texts: tuple[str, ...]) -> tuple[str, ...]:
            return texts[n : n + 1]

        hires, seed = request.hires, request.seed + (0 if request.subseed_strength else n)
        hires = hires and replace(hires, prompts=own(hires.prompts), negatives=own(hires.negatives))
        request = replace(
            request,
            batch=1,
            seed=seed % SEEDS,
            subseed=(request.subseed + n) % SEEDS,
            prompts=own(request.prompts),
            negatives=own(request.negatives),
            hires=hires,
            regions=tuple(replace(region, prompts=own(region.prompts)) for region in request.regions),
        )
        return replace(self, request=request, image=0, prompts=own(self.prompts), negatives=own(self.negatives))

    def _worded(self) -> Request:
        """Return the request with its images' own prompts in full, where they are not simply its prompt."""
        asked = {self.request.prompt}, {self.request.negative}
        if not self.prompts or ((set(self.prompts), set(self.negatives)) == asked and not self.request.styles):
            return self.request
        return replace(self.request, prompts=self.prompts, negatives=self.negatives, styles=())


def _own_params(unit: ControlUnit) -> dict[str, Scalar]:
    """Return the parameters that are the control's own, and no annotator's."""
    return unit.params if unit.name in FILELESS else {}


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
    info, pictures = PngImagePlugin.PngInfo(), list[bytes]()
    info.add_text(PARAMETERS, parameters_of(result, image).replace("\0", ""))
    info.add_itxt(CHUNK, json.dumps(_stowed(record, pictures), ensure_ascii=False), zip=True)
    for picture in pictures:
        info.add(PICTURE_CHUNK, picture, after_idat=True)
    info.add_itxt("Description", result.request.prompt)
    info.add_itxt("Software", f"Disegno {result.environment.get('disegno', '')}".strip())
    buffer = io.BytesIO()
    result.images[image].save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _stowed(value: Any, pictures: list[bytes]) -> Any:
    """Return the value with every data URI in it replaced by its number among `pictures`, where it is put."""
    if isinstance(value, dict):
        return {name: _stowed(inner, pictures) for name, inner in cast(dict[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_stowed(inner, pictures) for inner in cast(list[Any], value)]
    if not (isinstance(value, str) and value.startswith("data:") and ";base64," in value):
        return value
    header, _, body = value.partition(",")
    data = header.encode() + b"\0" + base64.b64decode(body)
    if data not in pictures:
        pictures.append(data)
    return f"{_STOWED}{pictures.index(data)}"


def _unstowed(value: Any, pictures: list[bytes]) -> Any:
    """Return the value with its data URIs in their places. Raises IndexError or ValueError where one is missing."""
    if isinstance(value, dict):
        return {name: _unstowed(inner, pictures) for name, inner in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_unstowed(inner, pictures) for inner in cast(list[Any], value)]
    if not (isinstance(value, str) and value.startswith(_STOWED) and value.removeprefix(_STOWED).isdigit()):
        return value
    header, _, data = pictures[int(value.removeprefix(_STOWED))].partition(b"\0")
    return f"{header.decode()},{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class _Texts:
    """What a file says beside its pixels: our record, the pictures that it names, and A1111's parameters."""

    record: str | None
    pictures: list[bytes]
    parameters: str | None


def _texts(path: Path) -> _Texts:
    try:
        with Image.open(path) as picture:
            picture.load()
            text = getattr(picture, "text", {}).get(CHUNK)
            chunks = [chunk[:2] for chunk in getattr(picture, "private_chunks", [])]
            told = text_in(picture)
    except PILLOW_TRIPS as error:
        raise BadImage(
            f"{path} cannot be read as a picture: {error}. Give a file that this program or A1111 made."
        ) from error
    for found, most in ((text, MAX_CHUNK_BYTES), (told, MAX_CHARACTERS)):
        if found and len(found) > most:
            raise BadImage(f"{path} carries {len(found)} bytes of text; at most {most} are read.")
    return _Texts(text, [data for name, data in chunks if name == PICTURE_CHUNK], told)


def read(path: Path) -> Record:
    """Return how the picture at `path` was made; of one without our record, what A1111's text says.

    Raises BadImage or RequestError.
    """
    texts = _texts(path)
    if texts.record is not None:
        record = _record(path, texts.record, texts.pictures)
        return record if texts.parameters is None else replace(record, models=models_of(texts.parameters))
    if texts.parameters is None:
        raise BadImage(
            f"{path} does not say how it was made: it has neither a request of this program nor A1111's parameters."
            " Give a file that one of the two wrote."
        )
    told = told_of(texts.parameters)
    return Record(make_request(told.fields), 0, (), {}, told=told)


def _record(path: Path, text: str, pictures: list[bytes]) -> Record:
    try:
        found: dict[str, Any] = _unstowed(json.loads(text), pictures)
        request, image = from_json(json.dumps(found["request"])), int(found["image"])
        if not 0 <= image < request.batch:
            raise ValueError(f"image {image} of {request.batch}")
        return Record(
            request,
            image,
            tuple(found["conditions"]),
            dict(found["environment"]),
            dict(found.get("sources", {})),
            tuple(found.get("prompts", ())),
            tuple(found.get("negatives", ())),
        )
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise BadImage(f"{path} carries a damaged request: {error!r}.") from error
