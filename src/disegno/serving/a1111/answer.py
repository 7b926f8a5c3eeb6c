"""What an A1111 client gets back for its order: pictures, the echo of its request, and `info`, a JSON text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from disegno.core.request import Request
from disegno.engine.sheet import table
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.files import as_format, open_png, png_of
from disegno.serving.a1111.generation import Order
from disegno.serving.a1111.grid import grid
from disegno.serving.a1111.images import encode
from disegno.serving.a1111.options import Settings, default_of
from disegno.serving.a1111.scripts import Plot

_PICTURE_FIELDS = ("init_images", "mask", "latent_mask", "firstpass_image")


@dataclass(frozen=True)
class Drawn:
    """What came of one Request: its concrete form, and for each picture a PNG file, a seed and an infotext.

    `vae`, `vae_hash`: of a VAE that was not the model's own.
    """

    request: Request
    pictures: tuple[bytes, ...]
    infotexts: tuple[str, ...]
    seeds: tuple[int, ...]
    subseeds: tuple[int, ...]
    maps: tuple[bytes, ...] = ()
    warnings: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    vae: str | None = None
    vae_hash: str | None = None


@dataclass(frozen=True)
class Model:
    """The model that drew, as the info names it."""

    name: str
    hash: str = ""
    inpainting: bool = False


def format_of(settings: Settings) -> tuple[str, int, bool]:
    """Return the format, the quality and whether WebP is lossless, of a person's settings."""
    values = {
        name: settings.get(name, default_of(name)) for name in ("samples_format", "jpeg_quality", "webp_lossless")
    }
    quality = values["jpeg_quality"]
    return str(values["samples_format"]), quality if isinstance(quality, int) else 80, bool(values["webp_lossless"])


def _on(settings: Settings, name: str) -> bool:
    return bool(settings.get(name, default_of(name)))


def _sheets(order: Order, drawn: Sequence[Drawn]) -> list[Image.Image]:
    """Return what stands before the pictures: a plot's tables, or a grid where the pictures are saved."""
    if order.plot is not None:
        return _tables(order.plot, _cells(order, drawn))
    pictures = [picture for one in drawn for picture in one.pictures]
    asked = order.with_row if order.turns else order.given.flag("save_images")
    wanted = asked and _on(order.settings, "return_grid") and len(pictures) > 1
    rows = 1 if order.with_row else order.settings.get("n_rows", -1)
    if not wanted:
        return []
    opened = [open_png(picture) for picture in pictures]
    return [grid(opened, rows if isinstance(rows, int) else -1, order.given.whole("batch_size"))]


def _cells(order: Order, drawn: Sequence[Drawn]) -> dict[tuple[int, int, int], Image.Image]:
    """Return each cell's picture; a cell of several pictures shows them side by side."""
    assert order.plot is not None
    found: dict[tuple[int, int, int], Image.Image] = {}
    done = 0
    for cell, num in zip(order.plot.cells, order.cells, strict=True):
        pictures = [open_png(png) for one in drawn[done : done + num] for png in one.pictures]
        done += num
        if pictures:
            found[cell.place] = pictures[0] if len(pictures) == 1 else grid(pictures)
    return found


def _tables(plot: Plot, cells: Mapping[tuple[int, int, int], Image.Image]) -> list[Image.Image]:
    """Return the plot's sheet; with a third axis, its tables one below the other, and each alone where asked."""
    if not cells:
        return []
    blank = Image.new("RGB", next(iter(cells.values())).size, "grey")
    xs, ys, zs = plot.labels
    pages = [
        table(
            [[cells.get((x, y, z), blank) for x in range(len(xs))] for y in range(len(ys))],
            xs,
            ys,
            plot.margin_px,
            plot.legend,
        )
        for z in range(len(zs))
    ]
    if len(pages) == 1:
        return pages
    whole = table([[page] for page in pages], [""], zs, plot.margin_px, plot.legend)
    return [whole, *pages] if plot.sub_grids else [whole]


def _shows_pictures(order: Order) -> bool:
    return order.plot is None or order.plot.lone_images


def answer(order: Order, drawn: Sequence[Drawn], model: Model, version: str, timestamp: str) -> dict[str, Json]:
    """Return the body of a generation's answer. `timestamp`: YYYYmmddHHMMSS."""
    sheets = _sheets(order, drawn)
    texts = [text for one in drawn for text in one.infotexts]
    # A1111 parity: a sheet's text is the first picture's
    infotexts = [*(texts[:1] * len(sheets)), *(texts if _shows_pictures(order) else [])]
    images = list(_encoded(order, drawn, sheets)) if order.given.flag("send_images") else []
    info = _info(order, drawn, model, len(sheets)) | {
        "infotexts": infotexts,
        "index_of_first_image": len(sheets) if _shows_pictures(order) else 0,
        "job_timestamp": timestamp,
        "version": version,
    }
    parameters = echo(order, drawn[0].request if drawn else order.requests[0])
    return {"images": images, "parameters": parameters, "info": json.dumps(info, ensure_ascii=False)}


def _encoded(order: Order, drawn: Sequence[Drawn], sheets: Sequence[Image.Image]) -> Iterator[Json]:
    """Yield the answer's pictures: sheets, pictures, and what the controls were shown."""
    image_format, quality, lossless = format_of(order.settings)
    with_text = _on(order.settings, "enable_pnginfo")

    def encoded(png: bytes, text: str | None) -> str:
        return encode(as_format(png, text if with_text else None, image_format, quality, lossless))

    texts = [text for one in drawn for text in one.infotexts]
    yield from (encoded(png_of(sheet), texts[0]) for sheet in sheets)
    if not _shows_pictures(order):
        return
    yield from (encoded(png, t) for one in drawn for png, t in zip(one.pictures, one.infotexts, strict=True))
    if drawn and order.plot is None and not _on(order.settings, "control_net_no_detectmap"):
        yield from (encoded(png, None) for png in _shown_maps(order, drawn[0]))


def _shown_maps(order: Order, one: Drawn) -> Iterator[bytes]:
    """Yield the maps of the units that show theirs; behind them there are those of what units have beside them."""
    yield from (shown for unit, shown in zip(order.units, one.maps, strict=False) if unit.shown)


def echo(order: Order, concrete: Request) -> dict[str, Json]:
    """Return the request as A1111 repeats it, without its pictures unless they are asked for."""
    values: dict[str, Json] = dict(order.given.values)
    values |= {"width": concrete.width, "height": concrete.height}
    if order.form == "img2img" and order.given.flag("include_init_images"):
        return values
    for name in _PICTURE_FIELDS:
        if name in values:
            values[name] = None
    return {name: _without_pictures(value) if name == "alwayson_scripts" else value for name, value in values.items()}


_LONG = 1000  # characters: a longer text in a unit is a picture


def _without_pictures(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: _without_pictures(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_pictures(item) for item in value]
    return None if isinstance(value, str) and len(value) > _LONG else value


def _info(order: Order, drawn: Sequence[Drawn], model: Model, num_sheets: int) -> dict[str, object]:
    """Return the info's entries that come from the requests."""
    first = drawn[0].request if drawn else order.requests[0]
    prompts = [prompt for one in drawn for prompt in one.prompts] or [first.prompt]
    negatives = [prompt for one in drawn for prompt in one.negatives] or [first.negative]
    seeds = [seed for one in drawn for seed in one.seeds] or [first.seed]
    subseeds = [seed for one in drawn for seed in one.subseeds] or [first.subseed]
    warnings = dict.fromkeys((*order.warnings, *(warning for one in drawn for warning in one.warnings)))
    return {
        "prompt": prompts[0],
        "all_prompts": prompts,
        "negative_prompt": negatives[0],
        "all_negative_prompts": negatives,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": first.subseed_strength,
        "width": first.width,
        "height": first.height,
        "sampler_name": first.sampler,
        "cfg_scale": first.cfg,
        "steps": first.steps,
        "batch_size": order.given.whole("batch_size"),
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model.name,
        "sd_model_hash": model.hash,
        "sd_vae_name": drawn[0].vae if drawn else None,
        "sd_vae_hash": drawn[0].vae_hash if drawn else None,
        "seed_resize_from_w": first.seed_width or -1,
        "seed_resize_from_h": first.seed_height or -1,
        "denoising_strength": order.given.number("denoising_strength"),
        "extra_generation_params": dict(drawn[0].extra) if drawn else {},
        "styles": order.given.items("styles"),
        "clip_skip": first.clip_skip,
        "is_using_inpainting_conditioning": model.inpainting,
        "warnings": list(warnings),
    }
