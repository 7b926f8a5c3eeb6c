"""A1111's settings in requests and texts: what a request leaves open is the person's, what a text leaves out is not."""

import base64
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from disegno.core.infotext import values_of, write_infotext
from disegno.core.request import make_request
from disegno.samplers.catalogue import resolve_names
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.controlnet import translate_unit
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.generation import translate
from disegno.serving.a1111.house import House, Named
from disegno.serving.a1111.routes_options import checkpoint

pytestmark = pytest.mark.contract


def png() -> str:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (120, 60, 30)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PNG = png()
HOUSE = House(
    models=(
        Named("diorama"),
        Named("dream", "dream.safetensors", "a" * 10, "dream.safetensors", "a" * 64, "xl/dream.safetensors"),
        Named("old/ink.pt", "old/ink.pt", "b" * 10, "ink.pt", "b" * 64, "old/ink.pt"),
        Named("new/ink.pt", "new/ink.pt", "c" * 10, "ink.pt", "c" * 64, "new/ink.pt"),
    ),
    vaes=(),
    controls=(),
    upscalers=("None", "Lanczos", "Latent"),
    styles=(),
    names=resolve_names,
    draw=lambda: 7,
    settings={"sd_model_checkpoint": "dream", "CLIP_stop_at_last_layers": 2, "randn_source": "CPU"},
)


@pytest.mark.parametrize("asked", [None, "", "dream", "xl/dream.safetensors [aaaaaaaaaa]"])
def test_an_override_that_says_nothing_leaves_a_persons_checkpoint(asked: Json) -> None:
    body: dict[str, Json] = {
        "override_settings": {"sd_model_checkpoint": asked, "CLIP_stop_at_last_layers": None},
        "override_settings_restore_afterwards": False,
    }
    order = translate("txt2img", body, HOUSE)
    assert (order.requests[0].model, order.requests[0].clip_skip) == ("dream", 2)
    kept = {**HOUSE.settings, **order.keep}
    assert checkpoint(replace(HOUSE, settings=kept)).title == "dream.safetensors [aaaaaaaaaa]"
    assert kept == dict(HOUSE.settings)


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("", "diorama"),
        ("dream.safetensors [aaaaaaaaaa]", "dream.safetensors [aaaaaaaaaa]"),
        ("gone", "gone"),
        ("ink", "ink"),
    ],
)
def test_the_checkpoint_that_is_told_is_the_one_that_requests_want(said: str, title: str) -> None:
    assert checkpoint(replace(HOUSE, settings={"sd_model_checkpoint": said})).title == title


def test_a_texts_model_is_found_by_its_hash_before_its_name() -> None:
    texts = {
        "Model hash: cccccccccc, Model: ink": "new/ink.pt",
        "Model hash: aaaaaaaaaa, Model: renamed": "dream",
        "Model hash: 0123456789, Model: dream": "dream",
        "Model hash: bbbbbbbbbb": "old/ink.pt",
    }
    for told, model in texts.items():
        order = translate("txt2img", {"infotext": f"a cow\nSteps: 9, Sampler: Heun, {told}"}, HOUSE)
        assert (order.requests[0].model, order.warnings) == (model, ())
    order = translate("txt2img", {"infotext": "a cow\nSteps: 9, Sampler: Heun, Model: ink"}, HOUSE)
    assert order.requests[0].model == "dream"
    assert "There are 2 models named 'ink'" in order.warnings[0]


def test_what_a_text_leaves_out_is_the_default_and_not_the_persons() -> None:
    text = "a cow\nSteps: 9, Sampler: Heun, CFG scale: 3, Seed: 5, Size: 64x64"
    (request,) = translate("txt2img", {"infotext": text}, HOUSE).requests
    assert (request.clip_skip, request.noise_source) == (1, "nv")
    (asked,) = translate("txt2img", {"infotext": text, "override_settings": {"randn_source": "CPU"}}, HOUSE).requests
    assert asked.noise_source == "cpu"
    old = translate("txt2img", {"infotext": f"a [cow:cat:3]\n{text[6:]}, Version: v1.5.0"}, HOUSE)
    assert old.requests[0].old_timelines


def test_a_text_of_a_masked_picture_goes_round_also_where_it_is_silent() -> None:
    picture = f"data:image/png;base64,{PNG}"
    init = {"image": picture, "mask": picture, "fill": "original", "mask_blur": 0, "only_masked": False}
    asked = make_request({"prompt": "a cow", "width": 64, "height": 64, "steps": 9, "init": {**init, "denoise": 0.5}})
    text = write_infotext("a cow", "", {"Sampler": "Heun"} | values_of(asked, 5, 5, {}))
    (request,) = translate("img2img", {"infotext": text, "init_images": [PNG], "mask": PNG}, HOUSE).requests
    assert request.init is not None
    assert (request.init.fill, request.init.only_masked) == ("original", False)
    assert (request.init.mask_blur, request.init.mask_blur_y) == (0, 0)
    (plain,) = translate("img2img", {"init_images": [PNG], "mask": PNG}, HOUSE).requests
    assert plain.init is not None
    assert (plain.init.fill, plain.init.only_masked, plain.init.mask_blur) == ("fill", True, 4)  # the API's own


def test_an_old_texts_first_pass_is_the_size() -> None:
    text = "a cow\nSteps: 9, Sampler: Heun, Size: 256x128, First pass size: 128x64, Denoising strength: 0.5"
    (request,) = translate("txt2img", {"infotext": text}, HOUSE).requests
    assert (request.width, request.height) == (128, 64)
    assert request.hires is not None
    assert (request.hires.width, request.hires.height) == (256, 128)


PAGE: dict[str, Json] = {
    "Refiner": {"args": [False, "", 0.8]},
    "Seed": {"args": [-1, False, -1, 0, 0, 0]},
    "Sampler": {"args": [20, "DPM++ 2M", "Automatic"]},
    "Comments": {"args": []},
    "Extra options": {"args": []},
    "Hypertile": {"args": []},
    "Soft Inpainting": {"args": [False, 1, 0.5, 4, 0, 0.5, 2]},
    "ControlNet": {"args": []},
}


def test_a_payload_of_a1111s_page_names_its_own_scripts_and_is_drawn() -> None:
    order = translate("img2img", {"init_images": [PNG], "alwayson_scripts": PAGE, "steps": 9}, HOUSE)
    assert order.requests == translate("img2img", {"init_images": [PNG], "steps": 9}, HOUSE).requests
    told, off = order.warnings
    assert "Refiner, Seed, Sampler, Comments, Extra options, Hypertile do nothing" in told
    assert off == "The always-on scripts Soft Inpainting are not built in, and are off: passed over."


@pytest.mark.parametrize(
    ("scripts", "words"),
    [
        ({"Soft Inpainting": {"args": [True]}}, "is not built in"),
        ({"soft inpainting": [True, 1, 0.5]}, "is not built in"),
        ({"ADetailer": {"args": [True]}}, "not found"),
        ({"ADetailer": {"args": [{"ad_model": "face_yolov8n.pt"}]}}, "not found"),
        ({"ReActor": {"args": [None, True]}}, "not found"),
        ({"DynamicThresholding (CFG-Fix) Integrated": {"args": [True, 7]}}, r"guide\.apg, at /v1"),
    ],
)
def test_a_script_that_would_change_the_picture_is_refused(scripts: Json, words: str) -> None:
    with pytest.raises(WireError, match=words):
        translate("img2img", {"init_images": [PNG], "alwayson_scripts": scripts}, HOUSE)


UNIT: dict[str, Json] = {"enabled": True, "module": "reference_only", "image": PNG}


@pytest.mark.parametrize(
    ("unit", "end"),
    [
        ({"guidance": 1.0, "guidance_end": 0.5, "lowvram": False, "low_vram": False}, 0.5),
        ({"guidance": 0.5, "guidance_end": 0.5}, 0.5),
        ({"guidance": 0.5}, 0.5),
        ({"input_image": PNG, "mask": None}, 1.0),
    ],
)
def test_an_older_name_beside_the_newer_one_says_nothing_where_it_is_the_default(unit: Json, end: float) -> None:
    assert isinstance(unit, dict)
    read = translate_unit({**UNIT, **unit}, (), (), has_init=False)
    assert read is not None and read.fields["end"] == end


def test_two_names_that_say_different_things_are_refused() -> None:
    with pytest.raises(WireError, match="guidance and guidance_end are the same field"):
        translate_unit({**UNIT, "guidance": 0.3, "guidance_end": 0.5}, (), (), has_init=False)


def test_a_plots_pictures_share_their_seeds_unless_none_is_to_be_fixed() -> None:
    numbers = iter(range(100, 200))
    house = replace(HOUSE, draw=numbers.__next__)
    args: list[Json] = [4, "5,6,7", []]  # steps
    body: dict[str, Json] = {"subseed_strength": 0.5, "script_name": "X/Y/Z plot"}
    fixed = translate("txt2img", {**body, "script_args": args}, house).requests
    assert len({(request.seed, request.subseed) for request in fixed}) == 1
    loose = [*args, 0, "", [], 0, "", [], True, False, False, True]
    assert len({request.seed for request in translate("txt2img", {**body, "script_args": loose}, house).requests}) == 3


def test_a_setting_of_the_hires_pass_that_is_not_carried_out_is_said() -> None:
    own: dict[str, Json] = {"override_settings": {"img2img_extra_noise": 0.1}}
    said = "img2img_extra_noise was passed over"
    assert any(said in text for text in translate("txt2img", {**own, "enable_hr": True}, HOUSE).warnings)
    changed = translate("img2img", {**own, "init_images": [PNG]}, HOUSE)
    assert changed.requests[0].init and changed.requests[0].init.extra_noise == 0.1
    for order in (changed, translate("txt2img", own, HOUSE), translate("txt2img", {"enable_hr": True}, HOUSE)):
        assert not any(said in text for text in order.warnings)
