"""`disegno generate`: a sentence and drawings become pictures.

Its flags derive from the fields of `core.request.Request`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from disegno.cli.each import draw_each
from disegno.cli.fields import GROUPS, nested_options, or_none, request_options
from disegno.cli.lean import open_nets
from disegno.cli.loops import LOOP_CURVE_HELP, LOOP_DENOISE_HELP, LOOPS_HELP, draw_and_write, loops_of
from disegno.cli.output import free_path, is_folder, output_paths, require_file, require_out, with_bar
from disegno.cli.plot import AXIS_HELP, Saying, draw_sheet
from disegno.cli.request import CONTROL_HELP, LORA_HELP, OUTPAINT_HELP, REGION_HELP, build_request, parse_outpaint
from disegno.cli.sections import Sectioned
from disegno.core.each import turns_of
from disegno.core.errors import RequestError
from disegno.core.loopback import CURVES, MAX_LOOPS, LoopCurve
from disegno.core.request import Request
from disegno.core.result import Result
from disegno.core.settings import Settings, load_settings

_WITHOUT_PICTURE = "It was made from another picture, which is not in it: give that one with --from."


def write_result(result: Result, out: Path | None, only: int | None) -> tuple[list[Path], Path | None]:
    """Write the pictures with their records, and a contact sheet when there are several; returns where they are."""
    from disegno.engine.sheet import result_sheet
    from disegno.engine.writing import write_picture, write_plain

    keep = list(range(len(result.images))) if only is None else [only]
    paths = output_paths(out, result, keep)
    for path, i in zip(paths, keep, strict=True):
        write_picture(path, result, i)
    if len(keep) == 1:
        return paths, None
    page = out if out is not None and not is_folder(out) else free_path(paths[0].with_stem(f"{paths[0].stem}-sheet"))
    write_plain(page, result_sheet(result))
    return paths, page


def seeds_of(result: Result, only: int | None) -> list[int]:
    """Return the seed of each picture that is written. `only`: the one of the batch that is, None: all are."""
    return list(result.seeds) if only is None else [result.seeds[only]]


def _report(result: Result, paths: list[Path], page: Path | None, seeds: list[int], seconds: float) -> dict[str, Any]:
    return {
        "images": [str(path) for path in paths],
        "sheet": str(page) if page else None,
        "seeds": seeds,
        "seconds": round(seconds, 3),
        "timing": {name: round(value, 3) for name, value in asdict(result.timing).items()},
        "warnings": list(result.warnings),
        "environment": result.environment,
        "request": {
            **asdict(replace(result.request, controls=())),
            "controls": [asdict(u) for u in result.request.controls],
        },
    }


def _doubts(again: Path | None, result: Result) -> list[str]:
    """Return why the picture may differ from the one that is made again."""
    if again is None:
        return []
    from disegno.engine.record import read

    record = read(again)
    if record.told is not None:
        alone = record.told.init and result.request.init is None
        return [*record.told.doubts, *([_WITHOUT_PICTURE] if alone else [])]
    then, now = record.environment, result.environment
    changed = [
        f"{key} was {then.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(then | now)
        if then.get(key) != now.get(key)
    ]
    return [f"The picture may differ in its last bits: {'; '.join(changed)}."] if changed else []


def one_text(_ctx: click.Context, _param: click.Parameter, words: tuple[str, ...]) -> str | None:
    """Return the argument, None where there is none. Raises RequestError where a sentence has lost its quotes."""
    if len(words) > 1:
        raise RequestError(
            f"PROMPT is one text, and here are {len(words)}: {', '.join(words)}. Put a sentence, and a name with"
            ' spaces, into quotes, as in disegno generate "a red car on a city street".'
        )
    return words[0] if words else None


SECTIONS = {
    "What to draw": (
        *("prompt", "negative", "prompts", "negatives", "style", "styles", "loras", "control", "regions"),
        *("base_weight", "model", "vae", "size"),
        *("seed", "batch", "steps", "few_steps", "cfg", "sampler", "schedule", "again"),
    ),
    "A picture from a picture": (
        *("init__", "outpaint", "loops", "loop_denoise", "loop_curve", "image_cfg", "depth", "depth_annotate"),
    ),
    "Larger pictures, a refiner, and textures": ("hires__", "refiner__", "tiles", "tiles__", "vae_tile", "seamless"),
    "Many pictures on one sheet": ("x", "y", "z", "matrix"),
    "Files and the machine": ("out", "preview", "as_json", "quiet", "dtype", "device", "t5"),
    "How prompts are read": ("emphasis", "clip_skip", "comma_backtrack", "pad_texts", "old_timelines"),
    "Noise, guidance and sampling, in detail": (
        *("subseed", "subseed_strength", "seed_width", "seed_height", "seed_delta", "noise_source", "cfg_rescale"),
        *("cfg_start", "negative_min", "negative_min_all", "guide__", "freeu__"),
        *("eta", "churn", "churn_min", "churn_max", "churn_noise", "prediction"),
        *("crop_top", "crop_left", "beauty", "plainness"),
    ),
}


ELSEWHERE = {"prompt", "controls", "regions", "width", "height", "loras", *(group.field for group in GROUPS)}


@click.command(name="generate", cls=Sectioned, sections=SECTIONS)
@click.argument("prompt", required=False, nargs=-1, metavar="[PROMPT]", callback=one_text)
@click.option("--control", metavar="NAME=IMAGE[,...]", multiple=True, help=CONTROL_HELP)
@click.option("--region", "regions", metavar="WORDS PLACE", nargs=2, multiple=True, help=REGION_HELP, callback=or_none)
@click.option("--lora", "loras", metavar="NAME[:WEIGHT]", multiple=True, help=LORA_HELP, callback=or_none)
@click.option("--size", metavar="WxH", help="Width and height in pixels, multiples of 8; unset: the model's own.")
@request_options(exclude=ELSEWHERE)
@nested_options
@click.option("--outpaint", metavar="SIDES", help=OUTPAINT_HELP)
@click.option("--loops", type=click.IntRange(1, MAX_LOOPS), help=LOOPS_HELP)
@click.option("--loop-denoise", type=click.FloatRange(0, 1), help=LOOP_DENOISE_HELP)
@click.option("--loop-curve", type=click.Choice(CURVES), help=LOOP_CURVE_HELP)
@click.option("--tiles/--no-tiles", default=None, help="Draw in overlapping parts of the model's own size.")
@click.option("--x", metavar="AXIS", help=AXIS_HELP)
@click.option("--y", metavar="AXIS", help="The same, downwards.")
@click.option("--z", metavar="AXIS", help="The same, as tables below each other.")
@click.option("--matrix", is_flag=True, help="Draw every choice of b and c, of a prompt 'a|b|c', on one sheet.")
@click.option(
    "--again",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Make the picture in this file again; other flags change it. From a PNG file of this program bit for bit; else"
    " from A1111's parameters.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="A file (.png, .jpg, .webp; with several images: the sheet's), or a folder. Unset: a new name in out/.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="The numbers to compute in; auto is what this processor does fast.",
)
@click.option("--device", metavar="D", help="auto, cpu, cuda, mps.")
@click.option(
    "--t5",
    type=click.Choice(["on", "off", "cpu", "int8"]),
    help="Stable Diffusion 3's large text encoder: on, off, on the CPU, or in 8 bits.",
)
@click.option(
    "--preview",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A picture file that shows what is being drawn, written anew twice a second.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of words.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    prompt: str | None, control: tuple[str, ...], size: str | None, again: Path | None, out: Path | None,
    dtype: str | None, device: str | None, t5: str | None, as_json: bool, quiet: bool, outpaint: str | None,
    x: str | None, y: str | None, z: str | None, matrix: bool, preview: Path | None, loops: int | None,
    loop_denoise: float | None, loop_curve: LoopCurve | None, **given: Any,
) -> None:  # fmt: skip
    """Make pictures from PROMPT, and from drawings.

    \b
    A sentence; the edges of a photo; a drawing that is shown as it is; two controls:
      disegno generate "a red car on a city street" --seed 1
      disegno generate "a red car on a city street" --control canny=photo.jpg
      disegno generate "a castle" --control canny=edges.png,annotate=none,strength=0.8
      disegno generate "a castle" --control canny=a.png,region=left.png --control canny=b.png,curve=1@0,0@0.6
    \b
    Words for parts of the canvas:
      disegno generate "a street" --region "a red car" w=0.5 --region "a green tree" x=0.5,weight=1.5
    \b
    Words that count more, change on the way, are one of several, name a LoRA:
      disegno generate "a (red:1.3) car on a [sunny:snowy:0.5] street" --negative blurry
      disegno generate "a __colour__ car <lora:ink:0.8>" --style Noir --batch 4
    \b
    A picture changed, a part of it, what lies around it, larger:
      disegno generate "a blue car" --from photo.png --denoise 0.6 --control canny
      disegno generate "a blue car" --from photo.png --mask car.png --only-masked
      disegno generate "a city street" --from photo.png --outpaint left=64,right=64
      disegno generate "a blue car" --from photo.png --denoise 0.5 --loops 4 --loop-denoise 0.2
      disegno generate "a blue car" --from photos --control canny -o cars          # every picture of a folder
      disegno generate "a red car" --hires 2 --hires-upscaler Lanczos --hires-denoise 0.3
    \b
    Many on one sheet; the same again, also from A1111's files:
      disegno generate "a red car" --x cfg=2,4,6 --y seed=1-3 -o plot.png
      disegno generate --again out/picture.png
    """
    if prompt is None and again is None and not any(given.get(name) for name in ("prompts", "init__image", "regions")):
        raise RequestError(
            'There is nothing to draw: give a sentence, as in disegno generate "a red car on a city street",'
            " or --region WORDS PLACE, or --from PICTURE, or --again PICTURE."
        )
    began = time.perf_counter()
    require_out(out)
    if preview is not None:
        require_file(preview)
    if outpaint is not None:
        given["init__outpaint"] = parse_outpaint(outpaint)
    is_sheet = bool(x or y or z or matrix)
    request, only = build_request(prompt, again, control, size, given, alone=is_sheet or loops is not None)
    settings = load_settings(dtype=_dtype(dtype, again), device=device, t5=t5)
    open_nets()
    axes = [text for text in (x, y, z) if text]
    saying = Saying(as_json, quiet, preview)
    if (turns := turns_of(request)) is not None:
        if is_sheet or loops:
            raise RequestError(
                "A folder's pictures are drawn one by one: leave out --x, --y, --z, --matrix and --loops, or give one"
                " picture."
            )
        return draw_each(turns, settings, out, saying)
    if (told := loops_of(loops, loop_denoise, loop_curve, is_sheet)) is not None:
        return draw_and_write(request, told, settings, out, saying)
    if is_sheet:
        return draw_sheet(request, axes, matrix, settings, out, saying)
    result = with_bar(_generate(request, settings, preview is not None), quiet or as_json, preview)
    result = replace(result, warnings=(*result.warnings, *_doubts(again, result)))
    (paths, page), seeds = write_result(result, out, only), seeds_of(result, only)
    seconds = time.perf_counter() - began
    if as_json:
        click.echo(json.dumps(_report(result, paths, page, seeds, seconds), ensure_ascii=False))
    elif not quiet:
        _say(result, paths, page, seeds, seconds)
    return None


def _generate(request: Request, settings: Settings, with_previews: bool) -> Any:
    from disegno.engine.generate import generate

    return generate(request, settings=settings, preview_every=1 if with_previews else 0)


def _dtype(dtype: str | None, again: Path | None) -> str | None:
    if dtype or again is None:
        return dtype
    from disegno.engine.record import read

    return read(again).environment.get("dtype")


def _say(result: Result, paths: list[Path], page: Path | None, seeds: list[int], seconds: float) -> None:
    warn: Callable[[str], None] = lambda text: click.secho(f"Note: {text}", fg="yellow", err=True)  # noqa: E731
    for warning in result.warnings:
        warn(warning)
    for path, seed in zip(paths, seeds, strict=True):
        click.echo(f"{path}  (seed {seed})")
    if page:
        click.echo(f"{page}  (all on one sheet)")
    click.echo(f"{len(paths)} picture{'s' if len(paths) > 1 else ''} in {seconds:.1f} s")
