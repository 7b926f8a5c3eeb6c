"""A1111's JSON as our Request: every field of the API does something or is reported, and nothing makes it fall over."""

import base64
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from disegno.core.infotext import values_of, write_infotext
from disegno.core.request import Hires, Refiner, make_request
from disegno.core.told import told_of
from disegno.samplers.catalogue import resolve_names
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.controlnet import UNIT
from disegno.serving.a1111.errors import WireError, error_body
from disegno.serving.a1111.fields import Field
from disegno.serving.a1111.generation import FORMS, Form, Order, translate
from disegno.serving.a1111.house import House, Named

pytestmark = pytest.mark.contract

GOLDEN = Path(__file__).parent.parent / "golden" / "a1111"


def png(colour: tuple[int, int, int] = (120, 60, 30)) -> str:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PNG, OTHER = png(), png((1, 2, 3))
HOUSE = House(
    models=(
        Named("diorama", tag="0" * 10, sha256="0" * 64),
        Named("v1-5.safetensors", tag="6ce0161689", file="v1-5.safetensors"),
    ),
    vaes=(Named("soft", "soft.safetensors", file="soft.safetensors"),),
    controls=(Named("canny", tag="d14c016b"), Named("control_v11f1p_sd15_depth", tag="cfd03158")),
    upscalers=("None", "Lanczos", "Latent", "Latent (bicubic)"),
    styles=("ink", "s"),
    names=resolve_names,
    draw=lambda: 7,
    settings={},
)
MINIMAL: dict[Form, dict[str, Json]] = {
    "txt2img": {"prompt": "a cat"},
    "img2img": {"prompt": "a cat", "init_images": [PNG]},
}
UNIT_BODY: dict[str, Json] = {"enabled": True, "module": "canny", "model": "canny [d14c016b]", "image": PNG}

# what to send for a field that is not a number or a boolean, in order to see it act
SAMPLES: dict[str, Json] = {
    "prompt": "a dog",
    "negative_prompt": "a dog",
    "styles": ["ink"],
    "sampler_name": "DDIM",
    "scheduler": "Karras",
    "sampler_index": "LMS",
    "override_settings": {"CLIP_stop_at_last_layers": 2},
    "refiner_checkpoint": "v1-5",
    "comments": {"x": 1},
    "force_task_id": "task(1)",
    "script_name": "X/Y/Z plot",
    "script_args": [4, "10,20"],
    "alwayson_scripts": {"ControlNet": {"args": [UNIT_BODY]}},
    "infotext": "a cow\nSteps: 9, Sampler: Heun, CFG scale: 2",
    "firstpass_image": PNG,
    "hr_upscaler": "Lanczos",
    "hr_checkpoint_name": "v1-5",
    "hr_sampler_name": "Heun",
    "hr_scheduler": "Karras",
    "hr_additional_modules": ["ae.safetensors"],
    "hr_prompt": "a dog",
    "hr_negative_prompt": "a dog",
    "init_images": [OTHER],
    "mask": OTHER,
    "latent_mask": PNG,
    "mask_blur": 9,
}
UNIT_SAMPLES: dict[str, Json] = {
    "enabled": False,
    "module": "invert",
    "model": "control_v11f1p_sd15_depth",
    "image": OTHER,
    "mask": PNG,
    "resize_mode": "Just Resize",
    "control_mode": "My prompt is more important",
    "hr_option": "High res only",
    "advanced_weighting": [0.5] * 13,
    "effective_region_mask": PNG,
    "pulid_mode": "Extremely style",
    "union_control_type": "Depth",
    "ipadapter_input": "x",
    "input_mode": "batch",
    "processor_res": 256,
    "threshold_a": 50,
    "threshold_b": 99,
}


def sample(row: Field, samples: dict[str, Json]) -> Json:
    """Return a value that differs from the field's default."""
    if row.name in samples:
        return samples[row.name]
    if row.kind == "bool":
        return not row.default
    if row.kind == "any":
        return 1
    low, high = row.bounds
    default = row.default if isinstance(row.default, int | float) else 1
    value: float = default * 2 if default > 0 else 1
    if high is not None and value > high:
        value = default / 2
    if row.name in ("width", "height", "seed_resize_from_h", "seed_resize_from_w", "hr_resize_x", "hr_resize_y"):
        value = 128
    if row.name.startswith("firstphase"):
        value = 128
    assert low is None or value >= low
    return int(value) if row.kind == "int" else value


def essence(order: Order) -> Any:
    """Return what an order does: all of it but the body that it was read from."""
    answered = {name: order.given.values[name] for name in ANSWER_ONLY if name in order.given.values}
    return order.requests, order.settings, order.units, order.warnings, order.keep, order.plot, answered


ANSWER_ONLY = ("send_images", "save_images", "include_init_images", "force_task_id")
"""What decides the answer only: the routes read it from the order."""

ROWS = [(form, row) for form, table in FORMS.items() for row in table]


@pytest.mark.parametrize(("form", "row"), ROWS, ids=lambda x: x if isinstance(x, str) else x.name)
def test_every_field_changes_the_request_or_the_answer_or_is_reported(form: Form, row: Field) -> None:
    context = {name: PNG if value == "<picture>" else value for name, value in row.when}
    base = {**MINIMAL[form], **context}
    with_it = {**base, row.name: sample(row, SAMPLES)}
    assert essence(translate(form, base, HOUSE)) != essence(translate(form, with_it, HOUSE)), row.name


@pytest.mark.parametrize("row", UNIT, ids=lambda row: row.name)
def test_every_field_of_a_unit_changes_it_or_is_reported(row: Field) -> None:
    def order(unit: dict[str, Json]) -> Any:
        return essence(translate("txt2img", {"alwayson_scripts": {"controlnet": {"args": [unit]}}}, HOUSE))

    assert order(UNIT_BODY) != order({**UNIT_BODY, row.name: sample(row, UNIT_SAMPLES)}), row.name


def test_a_hires_pass_has_the_first_ones_schedule_and_so_has_its_text() -> None:
    """A1111: where hr_scheduler is not given, whatever the sampler; and a text leaves out what is the same."""
    asked = {"enable_hr": True, "sampler_name": "Euler", "scheduler": "Karras", "hr_sampler_name": "Heun"}
    request = translate("txt2img", asked, HOUSE).requests[0]
    assert request.hires and (request.hires.sampler, request.hires.schedule) == ("Heun", "Karras")
    filled = replace(request, steps=20, cfg=7.0, width=512, height=512)
    text = write_infotext("a cat", "", values_of(filled, 1, 0, {"Model": "diorama"}))
    assert "Hires sampler: Heun" in text and "Hires schedule" not in text
    again = translate("txt2img", {"infotext": text}, HOUSE).requests[0].hires
    assert again and (again.sampler, again.schedule) == ("Heun", "Karras")
    assert Hires(**told_of(text).fields["hires"]).schedule is None  # the first's
    own = translate("txt2img", asked | {"scheduler": None}, HOUSE).requests[0].hires
    assert own and own.schedule == "Automatic"


def test_a_refiner_is_asked_for_as_in_a1111_and_read_back_from_its_text() -> None:
    asked = {"refiner_checkpoint": "v1-5.safetensors [6ce0161689]", "enable_hr": True, "prompt": "a cat"}
    order = translate("txt2img", asked, HOUSE)
    assert order.requests[0].refiner == Refiner(model="v1-5.safetensors", at=0, passes="hires")  # A1111 parity
    own = {"refiner_switch_by_sample_steps": True, "hires_fix_refiner_pass": "both passes"}
    given = asked | {"refiner_switch_at": 0.7, "override_settings": own}
    request = translate("txt2img", given, HOUSE).requests[0]
    assert request.refiner == Refiner(model="v1-5.safetensors", at=0.7, share="steps")
    resolved = replace(request, steps=20, sampler="Euler", schedule="Automatic", cfg=7.0, width=512, height=512)
    text = write_infotext("a cat", "", values_of(resolved, 1, 0, {"Model": "diorama"}))
    assert "Refiner: v1-5.safetensors, Refiner switch at: 0.7" in text
    again = translate("txt2img", {"infotext": text}, HOUSE)
    assert again.requests[0].refiner == request.refiner == Refiner(**told_of(text).fields["refiner"])
    assert not [said for said in (*again.warnings, *told_of(text).doubts) if "Refiner" in said]
    assert (
        translate("txt2img", {"refiner_checkpoint": "None", "refiner_switch_at": 0.8}, HOUSE).requests[0].refiner
        is None
    )
    with pytest.raises(WireError, match="nobody"):
        translate("txt2img", {"refiner_checkpoint": "nobody"}, HOUSE)


@pytest.mark.parametrize("form", FORMS)
def test_the_tables_are_those_of_a1111(form: Form) -> None:
    theirs = {row["name"]: row for row in json.loads((GOLDEN / "api_request_fields.json").read_text("utf-8"))[form]}
    ours = {row.name: row for row in FORMS[form]}
    of_forge = {"hr_cfg", "hr_distilled_cfg", "hr_additional_modules"} if form == "txt2img" else set[str]()
    assert ours.keys() - theirs.keys() == {"clip_skip", "distilled_cfg_scale", *of_forge}
    missing = theirs.keys() - ours.keys()
    assert not missing
    differing = {name for name in theirs if (theirs[name]["default"] or None) != (ours[name].default or None)}
    assert differing == {"width", "height"}  # the model's own


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("null", [True, False])
def test_null_is_the_default(form: Form, null: bool) -> None:
    kept = MINIMAL[form]
    body = {**{row.name: None for row in FORMS[form]}, **kept} if null else kept
    order = translate(form, body, HOUSE)
    assert order.requests == translate(form, kept, HOUSE).requests
    assert not order.warnings


def recorded() -> list[Any]:
    def whole(value: Any) -> Any:
        if isinstance(value, str) and value.endswith("...<b64>"):
            return ("data:image/png;base64," if value.startswith("data:") else "") + PNG
        if isinstance(value, dict):
            return {name: whole(item) for name, item in value.items()}
        return [whole(item) for item in value] if isinstance(value, list) else value

    calls = json.loads((GOLDEN / "webuiapi_requests.json").read_text("utf-8"))["requests"]
    return [whole(call) for call in calls if str(call.get("path")).startswith("/sdapi/v1/") and "2img" in call["path"]]


REACHES = {  # what these calls ask for that is not here, and must be said
    "txt2img controlnet": "inpaint_only",
    "img2img controlnet": "depth_midas",
}


@pytest.mark.parametrize("call", recorded(), ids=lambda call: call["client_call"])
def test_the_recorded_calls_of_webuiapi_are_understood(call: Any) -> None:
    form: Form = call["path"].rpartition("/")[2]
    controls = (*HOUSE.controls, Named("control_v11p_sd15_canny", tag="d14c016b"))
    house = replace(HOUSE, controls=(*controls, Named("control_v11p_sd15_inpaint", tag="ebff9138")))
    house = replace(house, upscalers=(*HOUSE.upscalers, "R-ESRGAN 4x+"))
    if missing := REACHES.get(call["client_call"]):
        with pytest.raises(WireError, match=missing):
            translate(form, call["json"], house)
        return
    assert not translate(form, call["json"], house).warnings


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -1, 0, 2**63, 2**64, 1e308]), st.booleans(), st.none()
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "x", "NaN", "\0", "../x", "🙂", "\ud800", "data:image/png", PNG, PNG[:40], "http://127.0.0.1/"]
    ),
)
VALUES = st.recursive(
    NUMBERS | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
TITLES = st.sampled_from(
    [
        "Loopback",
        "SD upscale",
        "Ultimate SD upscale",
        "Prompts from file or textbox",
        "Poor man's outpainting",
        "loopback",
    ]
)
NAMES = sorted({row.name for rows in FORMS.values() for row in rows} | {"controlnet_units", "x", "__proto__"})
UNIT_NAMES = [*(row.name for row in UNIT), "input_image", "mask_image", "lowvram", "guidance", "\0"]
UNITS = st.dictionaries(st.sampled_from(UNIT_NAMES), VALUES, max_size=4).map(lambda unit: {**UNIT_BODY, **unit})
SCRIPTS = st.fixed_dictionaries({"ControlNet": st.fixed_dictionaries({"args": st.lists(UNITS | VALUES, max_size=3)})})


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    body=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6),
    scripts=st.none() | SCRIPTS,
    whole=st.booleans(),
    script=st.none() | st.tuples(TITLES, st.lists(VALUES | st.sampled_from(["--steps 3", "a\nb"]), max_size=4)),
)
def test_any_body_gives_requests_or_one_typed_error(
    form: Form, body: Any, scripts: Any, whole: bool, script: Any
) -> None:
    if script:
        body = {**body, "script_name": script[0], "script_args": script[1]}
    body = {**(MINIMAL[form] if whole else {}), **body, **({"alwayson_scripts": scripts} if scripts else {})}
    try:
        order = translate(form, body, HOUSE)
    except WireError as error:
        assert 400 <= error.status < 500 or (error.status == 500 and str(error) == "Invalid encoded image")
        json.dumps(error_body(error)).encode()
        return
    assert 1 <= order.num_images <= 64


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"width": "abc"}, 422, "width: value is not a valid integer"),
        ({"width": 63}, 422, "greater than or equal to 64"),
        ({"cfg_scale": True}, 422, "cfg_scale"),
        ({"steps": 1.5}, 422, "steps"),
        ({"prompt": ["a"]}, 422, "str type expected"),
        ({"cfg_scale": "nan"}, 422, "cfg_scale"),
        ({"sampler_name": "NoSuch"}, 400, "Sampler not found"),
        ({"scheduler": "nope"}, 400, "nope"),
        ({"styles": ["no-such"]}, 422, "no-such"),
        ({"script_name": "nope"}, 422, "Script 'nope' not found"),
        ({"alwayson_scripts": {"nope": {"args": [True]}}}, 422, "Script 'nope' not found"),
        ({"override_settings": {"sd_model_checkpoint": "../../etc/passwd"}}, 404, "not found"),
        ({"override_settings": {"outdir_samples": "/etc"}}, 422, "cannot be changed"),
        ({"override_settings": {"CLIP_stop_at_last_layer": 2}}, 422, "Did you mean CLIP_stop_at_last_layers"),
        ({"enable_hr": True, "hr_upscaler": "nope"}, 422, "could not find upscaler named"),
        ({"batch_size": 64, "n_iter": 2}, 422, "at most 64 pictures"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"enabled": True}]}}}, 422, "no image"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"image": PNG}]}}}, 422, "names no model"),
        ({"alwayson_scripts": {"controlnet": {"args": [{}] * 1000}}}, 422, "at most 10 units"),
        ({"alwayson_scripts": {"controlnet": {"args": [{"image": "ftp://127.0.0.1:9/x.png"}]}}}, 422, "no address"),
    ],
)
def test_what_cannot_be_is_refused_in_words(body: dict[str, Json], status: int, words: str) -> None:
    with pytest.raises(WireError, match="(?s)" + words.replace("(", r"\(")) as caught:
        translate("txt2img", body, HOUSE)
    assert caught.value.status == status


def test_unknown_keys_are_reported_with_the_nearest_one() -> None:
    order = translate("txt2img", {"prompt": "x", "negative_promt": "y", "zzz": 1}, HOUSE)
    assert "Did you mean negative_prompt?" in order.warnings[0]
    assert order.warnings[1].startswith("zzz is unknown")


def test_a_boolean_is_an_integer() -> None:
    """pydantic 1 reads it so, and A1111's own tests send one."""
    body: dict[str, Json] = {"init_images": [PNG], "mask": PNG, "inpainting_mask_invert": False, "steps": True}
    (request,) = translate("img2img", body, HOUSE).requests
    assert (request.steps, request.init and request.init.invert) == (1, False)
    (inverted,) = translate("img2img", body | {"inpainting_mask_invert": True}, HOUSE).requests
    assert inverted.init and inverted.init.invert


def test_no_style_is_called_none_unless_one_has_that_name() -> None:
    def styles(*names: Json, known: Sequence[str] = HOUSE.styles) -> tuple[str, ...]:
        return translate("txt2img", {"styles": list(names)}, replace(HOUSE, styles=known)).requests[0].styles

    assert styles("None", "", "INK") == ("ink",)
    assert styles("None", known=("None",)) == ("None",)


def test_a_hires_pass_has_guidance_of_its_own() -> None:
    body: dict[str, Json] = {"enable_hr": True, "hr_cfg": 3.5, "distilled_cfg_scale": 3.5, "hr_distilled_cfg": 3.5}
    order = translate("txt2img", {**body, "hr_additional_modules": ["Use same choices"]}, HOUSE)
    assert (order.requests[0].hires and order.requests[0].hires.cfg, order.warnings) == (3.5, ())
    pasted = translate("txt2img", {"infotext": TEXT.replace(", Version", ", Hires CFG Scale: 4, Version")}, HOUSE)
    assert pasted.requests[0].hires and pasted.requests[0].hires.cfg == 4
    (told,) = translate("txt2img", {"distilled_cfg_scale": 2}, HOUSE).warnings
    assert told.startswith("distilled_cfg_scale has no effect here")


def test_iterations_go_on_where_the_batch_ended() -> None:
    order = translate("txt2img", {"seed": 7, "batch_size": 2, "n_iter": 2}, HOUSE)
    assert [(request.seed, request.batch) for request in order.requests] == [(7, 2), (9, 2)]
    varied = translate(
        "txt2img", {"seed": 7, "subseed": 3, "subseed_strength": 0.5, "batch_size": 2, "n_iter": 2}, HOUSE
    )
    assert [(request.seed, request.subseed) for request in varied.requests] == [(7, 3), (7, 5)]


def test_several_pictures_to_change_are_one_request_each() -> None:
    body: dict[str, Json] = {"init_images": [PNG, OTHER], "batch_size": 2, "n_iter": 2, "seed": 1}
    requests = translate("img2img", body, HOUSE).requests
    assert [request.seed for request in requests] == [1, 2, 3, 4]
    assert [request.init and request.init.image for request in requests] == [
        f"data:image/png;base64,{x}" for x in (PNG, OTHER)
    ] * 2
    with pytest.raises(WireError, match="bad number of images"):
        translate("img2img", {**body, "batch_size": 1}, HOUSE)


@pytest.mark.parametrize(
    "scripts",
    [
        {"ControlNet": {"args": [UNIT_BODY]}},
        {"controlnet": {"args": UNIT_BODY}},
        {"controlNet": [UNIT_BODY]},
        {"controlnet": {"args": [{**UNIT_BODY, "image": {"image": PNG, "mask": None}}]}},
        {"controlnet": {"args": [{**UNIT_BODY, "image": [{"image": PNG}]}]}},
        {"controlnet": {"args": [{**UNIT_BODY, "image": "", "input_image": f"data:image/png;base64,{PNG}"}]}},
        {"controlnet": {"args": [None, {name: value for name, value in UNIT_BODY.items() if name != "enabled"}]}},
    ],
)
def test_units_come_in_many_forms(scripts: Json) -> None:
    expected = translate("txt2img", {"alwayson_scripts": {"ControlNet": {"args": [UNIT_BODY]}}}, HOUSE).requests
    assert translate("txt2img", {"alwayson_scripts": scripts}, HOUSE).requests == expected
    assert expected[0].controls[0].annotate == "canny"


def test_the_oldest_forms_of_units_are_understood() -> None:
    expected = translate("txt2img", {"alwayson_scripts": {"ControlNet": {"args": [UNIT_BODY]}}}, HOUSE).requests
    flat: dict[str, Json] = {
        "controlnet_image": [PNG],
        "controlnet_module": "canny",
        "controlnet_model": "canny",
        "controlnet_lowvram": False,
    }
    for body in ({"controlnet_units": [UNIT_BODY]}, flat):
        order = translate("txt2img", body, HOUSE)
        assert order.requests == expected
        assert not order.warnings


@pytest.mark.parametrize(
    ("name", "vae", "words"),
    [
        ("Automatic", None, ""),
        ("", None, ""),
        ("None", "own", ""),
        ("soft.safetensors", "soft", ""),
        ("SOFT", "soft", ""),
        ("sft.pt", "own", "VAE 'sft.pt' not found: the model's own is used"),
    ],
)
def test_a_vae_is_a_setting_of_a_request_of_a_person_and_of_a_text(name: str, vae: str | None, words: str) -> None:
    text = f"x\nSteps: 9, Sampler: Heun, CFG scale: 2, VAE: {name or 'Automatic'}"
    orders = [
        translate("txt2img", {"prompt": "x", "override_settings": {"sd_vae": name}}, HOUSE),
        translate("txt2img", {"prompt": "x"}, replace(HOUSE, settings={"sd_vae": name})),
        translate("txt2img", {"infotext": text}, HOUSE),
    ]
    assert [order.requests[0].vae for order in orders] == [vae] * 3
    assert all((words in str(order.warnings)) == bool(order.warnings or not words) for order in orders)


TEXT = (
    "a cow\nNegative prompt: grass\nSteps: 9, Sampler: Heun, Schedule type: Karras, CFG scale: 2.5, Seed: 5, "
    "Size: 128x64, Model: v1-5, Denoising strength: 0.4, Clip skip: 2, Hires upscale: 2, Hires upscaler: Lanczos, "
    'ControlNet 0: "Module: canny, Model: canny", Version: v1.10.0'
)


def test_an_infotext_fills_what_a_request_leaves_open() -> None:
    order = translate(
        "txt2img", {"infotext": TEXT, "steps": 7, "override_settings": {"eta_noise_seed_delta": 1}}, HOUSE
    )
    (request,) = order.requests
    assert (request.prompt, request.negative, request.steps, request.cfg) == ("a cow", "grass", 7, 2.5)
    assert (request.sampler, request.schedule, request.seed) == ("Heun", "Karras", 5)
    assert (request.width, request.height, request.model) == (128, 64, "v1-5.safetensors")
    assert (request.clip_skip, request.seed_delta) == (2, 1)
    assert request.hires is not None
    assert (request.hires.scale, request.hires.upscaler, request.hires.denoise) == (2, "Lanczos", 0.4)
    assert order.warnings == ("The infotext's ControlNet 0 was not taken over: a unit needs its image.",)
    etas = TEXT.replace(", Version", ", Eta: 0.5, Eta DDIM: 0.1, Version")
    by_sampler = [translate("txt2img", {"infotext": etas.replace("Heun", name)}, HOUSE) for name in ("Heun", "DDIM")]
    assert [found.requests[0].eta for found in by_sampler] == [0.5, 0.1]
    other = translate("txt2img", {"infotext": TEXT.replace("v1-5", "v9")}, HOUSE)
    assert other.requests[0].model == "diorama"
    assert any("v9" in warning for warning in other.warnings)


def test_what_is_written_of_a_request_is_read_back_from_an_infotext() -> None:
    asked = make_request(
        {
            "prompt": "a cow",
            "model": "v1-5",
            "vae": "soft",
            "steps": 9,
            "sampler": "Heun",
            "schedule": "Karras",
            "cfg": 3.0,
            "seed": 5,
            "width": 64,
            "height": 128,
            "seamless": True,
            "negative_min": 2.5,
            "negative_min_all": True,
            "cfg_start": 0.25,
            "pad_texts": True,
            "old_timelines": True,
            "clip_skip": 2,
            "emphasis": "no-norm",
            "hires": {"scale": 2, "model": "diorama", "denoise": 0.5, "upscaler": "Lanczos"},
        }
    )
    text = write_infotext("a cow", "", values_of(asked, 5, 5, {"Model": "v1-5", "VAE": "soft"}))
    order = translate("txt2img", {"infotext": text}, HOUSE)
    (found,) = order.requests
    written = {field.name for field in fields(asked)} - {"eta", "model", "seed_delta", "subseed"}
    assert {name: getattr(found, name) for name in written} == {name: getattr(asked, name) for name in written}
    assert order.warnings == ()
    assert asked.init is None
    changed = make_request(
        {
            "prompt": "a cow",
            "width": 64,
            "height": 64,
            "init": {
                "image": f"data:image/png;base64,{PNG}",
                "mask": f"data:image/png;base64,{PNG}",
                "invert": True,
                "mask_blur": 9,
                "only_masked": True,
                "padding": 40,
                "fill": "noise",
                "noise": 0.5,
                "extra_noise": 0.1,
                "denoise": 0.5,
            },
        }
    )
    text = write_infotext("a cow", "", {"Steps": 9, "Sampler": "Heun", "CFG scale": 3.0} | values_of(changed, 5, 5, {}))
    text += ", Conditional mask weight: 0.25, Image CFG scale: 2.5, Token merging ratio: 0.5"
    order = translate("img2img", {"infotext": text, "init_images": [PNG], "mask": PNG}, HOUSE)
    init, wanted = order.requests[0].init, changed.init
    assert init is not None and (init.mask_weight, order.requests[0].image_cfg) == (0.25, 2.5)
    assert init is not None and wanted is not None
    for name in ("invert", "mask_blur", "only_masked", "padding", "fill", "noise", "extra_noise", "denoise"):
        assert getattr(init, name) == getattr(wanted, name), name
    assert order.warnings == ("The infotext's Token merging ratio: '0.5' was not taken over.",)
