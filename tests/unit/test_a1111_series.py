"""A1111's Loopback, SD upscale, Prompts from file or textbox and Poor man's outpainting: its arguments as Requests."""

import base64
from io import BytesIO
from math import cos, pi, sin
from typing import Any

import pytest
from PIL import Image

from disegno.core.errors import RequestError
from disegno.core.loopback import Loops, loop_denoises
from disegno.core.request import Tiles
from disegno.samplers.catalogue import resolve_names
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.generation import Form, Order, translate
from disegno.serving.a1111.house import House, Named
from disegno.serving.a1111.script_args import ARGS, rows_of
from disegno.serving.a1111.scripts import titles

pytestmark = pytest.mark.unit

HOUSE = House(
    models=[Named("diorama"), Named("other.safetensors")],
    vaes=[],
    controls=[],
    upscalers=["Latent", "None", "Lanczos", "Nearest", "x4"],
    styles=["ink"],
    names=resolve_names,
    draw=iter(range(7, 1000)).__next__,
    settings={},
)


def picture(width: int = 100, height: int = 64) -> str:
    buffer = BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def order(script: str, args: list[Json], form: Form = "img2img", **body: Json) -> Order:
    given: dict[str, Json] = {"prompt": "a cat", "seed": 5, "denoising_strength": 0.8, "width": 64, "height": 64}
    given |= {"init_images": [picture()]} if form == "img2img" else {}
    return translate(form, {**given, "script_name": script, "script_args": args, **body}, HOUSE)


# ---- the lists


def test_the_arguments_stand_in_a1111s_order() -> None:
    selectable = [title for title in titles("img2img") if title in ARGS]
    assert {title: [arg.name for arg in ARGS[title]] for title in selectable} == {
        "prompt matrix": ["put_at_start", "different_seeds", "prompt_type", "variations_delimiter", "margin_size"],
        "prompts from file or textbox": [
            "checkbox_iterate", "checkbox_iterate_batch", "prompt_position", "prompt_txt",
        ],
        "loopback": ["loops", "final_denoising_strength", "denoising_curve", "append_interrogation"],
        "sd upscale": ["info", "overlap", "upscaler_index", "scale_factor"],
        "ultimate sd upscale": [
            "info", "tile_width", "tile_height", "mask_blur", "padding", "seams_fix_width", "seams_fix_denoise",
            "seams_fix_padding", "upscaler_index", "save_upscaled_image", "redraw_mode", "save_seams_fix_image",
            "seams_fix_mask_blur", "seams_fix_type", "target_size_type", "custom_width", "custom_height",
            "custom_scale",
        ],
        "poor man's outpainting": ["pixels", "mask_blur", "inpainting_fill", "direction"],
    }  # fmt: skip
    assert rows_of("loopback")[1] == {
        "label": "Final denoising strength", "value": 0.5, "minimum": 0, "maximum": 1, "step": 0.01, "choices": None,
    }  # fmt: skip
    assert titles("txt2img") == ["x/y/z plot", "prompt matrix", "prompts from file or textbox"]
    assert set(titles("img2img")) == {"x/y/z plot", *selectable}
    with pytest.raises(WireError, match="Script 'loopback' not found"):
        order("Loopback", [2], form="txt2img")


# ---- Loopback


@pytest.mark.parametrize(("curve", "middle"), [("linear", 0.5), ("aggressive", sin(pi / 4)), ("lazy", 1 - cos(pi / 4))])
def test_loops_draw_less_and_less_anew(curve: Any, middle: float) -> None:
    assert loop_denoises(0.8, Loops(3, 0.4, curve)) == pytest.approx((0.8, 0.8 - 0.4 * middle, 0.4))
    assert loop_denoises(0.8, Loops(1, 0.4, curve)) == (0.8,)
    assert loop_denoises(0.8, Loops(2, None, curve)) == (0.8, 0.8)
    with pytest.raises(RequestError, match="1 to 32 times, not 33"):
        loop_denoises(0.8, Loops(33, 0.4, curve))


def test_a_loop_changes_what_the_one_before_it_drew() -> None:
    """Each with the next seed; what is masked begins as it is from the second loop on."""
    mask = {"mask": picture(), "inpainting_fill": 2}
    made = order("Loopback", [3, 0.2, "Linear", "None"], batch_size=4, **mask)
    inits = [request.init for request in made.requests]
    assert [init and init.denoise for init in inits] == pytest.approx([0.8, 0.5, 0.2])
    assert [init and init.fill for init in inits] == ["noise", "original", "original"]
    assert [(request.seed, request.batch) for request in made.requests] == [(5, 1), (6, 1), (7, 1)]
    assert [turn.follows for turn in made.turns] == [False, True, True]
    assert all(turn.kept for turn in made.turns) and made.with_row
    assert made.turns[0].told == {"Final denoising strength": 0.2, "Denoising curve": "Linear"}


def test_of_several_iterations_each_ones_last_picture_is_kept() -> None:
    made = order("loopback", [2], n_iter=2)
    pairs = zip(made.requests, made.turns, strict=True)
    expected = [(5, False, False), (6, True, True), (7, False, False), (8, True, True)]
    assert [(request.seed, turn.follows, turn.kept) for request, turn in pairs] == expected
    assert made.turns[0].told["Final denoising strength"] == 0.5  # where it is not said, the form's own


# ---- SD upscale


def test_sd_upscale_is_a_second_pass_in_tiles_of_the_forms_size() -> None:
    args: list[Json] = ["", 16, 3, 2.5]
    made = order("SD upscale", args, batch_size=8, n_iter=2, steps=20)
    first, second = made.requests
    assert (first.seed, second.seed, first.batch) == (5, 6, 1)
    assert (first.width, first.height) == (96, 64)  # the picture's own, whole 8s
    hires, init, tiles = first.hires, first.init, first.tiles
    assert hires is not None and init is not None and tiles is not None
    assert (init.denoise, hires.denoise, hires.scale, hires.upscaler, hires.steps) == (0.0, 0.8, 2.5, "x4", 16)
    assert (tiles.size, tiles.overlap) == (64, 0.25)
    told = made.turns[0].told
    assert (told["SD upscale overlap"], told["SD upscale upscaler"], told["Size"]) == (16, "x4", "64x64")
    assert told["Denoising strength"] == 0.8 and told["Hires upscale"] is None
    exact = order("SD upscale", args, steps=20, override_settings={"img2img_fix_steps": True}).requests[0].hires
    assert exact is not None and exact.steps == 20
    own = order("SD upscale", args, width=None)
    assert own.requests[0].tiles == Tiles() and "Size" not in own.turns[0].told  # of the model's own size


def test_an_upscaler_is_named_or_meant_by_its_place() -> None:
    for given, name, scale in ((1, "Lanczos", 2.0), ("nearest", "Nearest", 2.0), (0, "Lanczos", 1.0)):
        (request,) = order("SD upscale", [None, 64, given]).requests
        assert request.hires is not None and (request.hires.upscaler, request.hires.scale) == (name, scale)
    for wrong in (9, "x9", True, -1):
        with pytest.raises(WireError, match="no such upscaler"):
            order("SD upscale", [None, 64, wrong])


# ---- Ultimate SD upscale

ULTIMATE: list[Json] = [None, 512, 0, 8, 32, 64, 0.35, 32, 3, True, 0, False, 8, 0, 2, 2048, 2048, 2.5]


def ultimate(**changed: Json) -> list[Json]:
    names = [arg.name for arg in ARGS["ultimate sd upscale"]]
    return [changed.get(name, value) for name, value in zip(names, ULTIMATE, strict=True)]


def test_ultimate_sd_upscale_is_a_second_pass_in_joint_tiles() -> None:
    made = order("Ultimate SD upscale", ULTIMATE, batch_size=8, n_iter=2, steps=20)
    (request,) = made.requests
    hires, init = request.hires, request.init
    assert (request.seed, request.batch, request.width, request.height) == (5, 1, 96, 64)
    assert hires is not None and init is not None
    assert (init.denoise, hires.denoise, hires.scale, hires.upscaler, hires.steps) == (0.0, 0.8, 2.5, "x4", 16)
    assert request.tiles == Tiles(size=512, overlap=32 / 512)
    told = made.turns[0].told
    assert (told["Size"], told["Ultimate SD upscale upscaler"], told["Hires upscale"]) == ("240x160", "x4", None)
    assert (told["Ultimate SD upscale tile_width"], told["Ultimate SD upscale tile_height"]) == (512, 512)
    assert not made.warnings


@pytest.mark.parametrize(
    ("changed", "size"),
    [
        ({"target_size_type": 1, "custom_width": 1000, "custom_height": 640}, (1000, 640)),
        ({"target_size_type": "Custom size"}, (2048, 2048)),
        ({"target_size_type": 0}, (64, 64)),
    ],
)
def test_its_target_is_a_size_of_its_own_or_the_forms(changed: dict[str, Json], size: tuple[int, int]) -> None:
    made = order("Ultimate SD upscale", ultimate(**changed))
    hires = made.requests[0].hires
    assert hires is not None and (hires.width, hires.height) == size
    assert made.turns[0].told["Size"] == f"{size[0]}x{size[1]}"
    with pytest.raises(WireError, match="wants width and height"):
        order("Ultimate SD upscale", ultimate(target_size_type=0), width=None)


def test_its_tiles_are_square_and_its_seams_need_no_fix() -> None:
    made = order("Ultimate SD upscale", ultimate(tile_width=1024, tile_height=260, padding=512, seams_fix_type=2))
    assert made.requests[0].tiles == Tiles(size=256, overlap=0.75)
    assert "no seams to fix" in made.warnings[0]
    with pytest.raises(WireError, match="wants tiles"):
        order("Ultimate SD upscale", ultimate(tile_width=0))


def test_without_redrawing_it_only_enlarges() -> None:
    (request,) = order("Ultimate SD upscale", ultimate(redraw_mode=2, upscaler_index="None")).requests
    assert request.hires is not None
    assert (request.hires.denoise, request.hires.upscaler, request.hires.scale) == (0.0, "Lanczos", 2.5)


def test_its_first_version_had_one_side_for_its_tiles() -> None:
    older = [*ULTIMATE[:2], *ULTIMATE[3:]]
    old, new = (order("Ultimate SD upscale", args, subseed=1) for args in (older, ULTIMATE))
    assert old.requests == new.requests


# ---- Poor man's outpainting


def test_outpainting_grows_to_whole_64s_each_side_by_its_share() -> None:
    made = order("Poor man's outpainting", [64, 3, 2, ["left", "right", "down"]], n_iter=3)
    (request,) = made.requests
    init = request.init
    assert init is not None and init.outpaint is not None
    grow = init.outpaint
    assert (request.width, request.height) == (256, 128)  # 96 + 2 * 64 and 64 + 64, up to whole 64s
    assert (grow.left, grow.right, grow.top, grow.bottom) == (80, 80, 0, 64)
    assert (init.mask_blur, init.fill, init.denoise) == (6, "noise", 0.8)
    assert request.tiles == Tiles(size=64, overlap=0.75)
    assert made.turns[0].told == {"Mask blur": 6, "Masked content": "latent noise"}
    with pytest.raises(WireError, match="at least one direction"):
        order("Poor man's outpainting", [64, 3, "fill", []])
    with pytest.raises(WireError, match="permitted: fill, original"):
        order("Poor man's outpainting", [64, 3, "colour"])


# ---- Prompts from file or textbox


def lines(*text: str, args: tuple[Json, ...] = (False, False, "start"), **body: Json) -> list[Any]:
    return list(order("Prompts from file or textbox", [*args, "\n".join(text)], "txt2img", **body).requests)


def test_a_line_is_a_prompt_before_or_behind_the_forms() -> None:
    assert [r.prompt for r in lines("a dog", "", "  a -- fish")] == ["a dog a cat", "a -- fish a cat"]
    assert lines("a dog", args=(False, False, "end"))[0].prompt == "a cat a dog"
    assert lines("a dog", prompt="")[0].prompt == "a dog"


def test_a_line_of_options_changes_the_form() -> None:
    line = '--prompt a big dog --negative_prompt "old, grey" --steps 3 --width 128 --sampler_name "DPM++ 2M" --seed 9'
    request, other = lines(
        line, "--sd_model other.safetensors --styles ink --cfg_scale 3.5 --n_iter 1", negative_prompt="x"
    )
    assert (request.prompt, request.negative) == ("a big dog a cat", "old, grey x")
    assert (request.steps, request.width, request.height, request.seed) == (3, 128, 64, 9)
    assert request.sampler == "DPM++ 2M"
    assert (other.model, other.styles, other.cfg, other.prompt) == ("other.safetensors", ("ink",), 3.5, "a cat")


def test_seeds_of_lines() -> None:
    def seeds(*args: Json, **body: Json) -> list[int]:
        return [request.seed for request in lines("a", "b", "c", args=(*args, "start"), **body)]

    assert seeds(False, False) == [5, 5, 5]
    assert seeds(True, False, batch_size=2) == [5, 7, 9]
    same = seeds(False, True, seed=-1)
    assert len(set(same)) == 1
    assert len(set(seeds(False, False, seed=-1))) == 3


def test_before_a_position_the_text_was_the_third() -> None:
    made = order("prompts from file or textbox", [False, False, "a dog\nstart"], "txt2img")
    assert [request.prompt for request in made.requests] == ["a dog a cat", "start a cat"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n--paint 3", "line 2: 'paint' is no option. Known: .*--steps"),
        ("--steps", "line 1: --steps has no value"),
        ('--prompt "a', "line 1: No closing quotation"),
        ("--steps many", "steps: value is not a valid integer"),
        (" \n", "no line of text"),
        ("a\n" * 65, "65 pictures; at most 64"),
        ("a\n" * 100_000, "100000 pictures; at most 64"),  # said at once: none of them is read
    ],
)
def test_a_line_that_cannot_be_drawn_is_said(text: str, said: str) -> None:
    with pytest.raises(WireError, match=said):
        order("Prompts from file or textbox", [False, False, "start", text], "txt2img")
