"""ControlNet's units, modules and types of control: against what the extension itself says (recorded)."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import make_params
from disegno.core.errors import UnknownName
from disegno.core.infotext import unit_text
from disegno.core.request import ControlUnit
from disegno.serving.a1111.control_types import KNOWN, TAGS, control_type
from disegno.serving.a1111.controlnet import Unit, parts_of, translate_unit
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.fields import read_fields
from disegno.serving.a1111.house import Named
from disegno.serving.a1111.modules import find_module, module_list, modules
from disegno.serving.a1111.routes_controlnet import DETECT, annotation_of

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parent.parent / "golden"


def vectors(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "vectors" / f"{name}.json").read_text("utf-8"))


FULL = json.loads((GOLDEN / "a1111" / "controlnet_module_list_full.json").read_text("utf-8"))


def sliders(known: Any) -> list[dict[str, float]]:
    return [{"name": s.name, "value": s.value, "min": s.min, "max": s.max, "step": s.step} for s in known.sliders]


def test_the_known_modules_are_the_extensions() -> None:
    assert [known.name for known in KNOWN] == FULL["module_list"]
    assert [known.label for known in KNOWN] == FULL["module_list_alias"]
    details = {known.name: {"model_free": known.model_free, "sliders": sliders(known)} for known in KNOWN}
    assert details == FULL["module_detail"]


@pytest.mark.parametrize("case", vectors("controlnet_modules")["cases"], ids=lambda case: case["name"])
def test_a_module_stands_where_it_does_and_has_its_tags(case: dict[str, Any]) -> None:
    known = KNOWN[case["index"]]
    assert (known.name, known.label, list(known.tags)) == (case["name"], case["alias"], case["tags"])


TYPES = vectors("controlnet_control_types")


@pytest.mark.parametrize("case", TYPES["cases"], ids=lambda case: case["control_type"])
def test_a_type_of_control_has_its_modules_and_models(case: dict[str, Any]) -> None:
    rows = [(known.label, known.tags) for known in KNOWN]
    assert control_type(case["control_type"], rows, TYPES["models"]) == case["expected"]


def test_all_types_are_known() -> None:
    assert list(TAGS) == TYPES["all_tags"]


IMAGE = "data:image/png;base64,iVBORw0KGgo="
OURS = {module.known.name for module in modules()} | {module.known.label for module in modules()}
LENIENT = {"resize_mode", "control_mode"}  # older versions took numbers, and so does this one


def usable(case: dict[str, Any]) -> bool:
    fields = case["input"]
    if "raises" in case:
        lenient = any(isinstance(fields.get(name), int) for name in LENIENT) or None in fields.values()
        return not lenient
    return fields.get("module", "none") in OURS and not isinstance(case["expected"]["image"], str)


UNITS = [case for case in vectors("controlnet_unit_validation")["cases"] if usable(case)]


@pytest.mark.parametrize("case", UNITS, ids=lambda case: json.dumps(case["input"])[:60])
def test_a_unit_is_read_as_the_extension_reads_it(case: dict[str, Any]) -> None:
    controls = [Named("None "), Named("x")]
    unit = {"image": IMAGE, "model": "x", **case["input"], "enabled": True}
    if "raises" in case:
        with pytest.raises(WireError):
            translate_unit(unit, (), controls, has_init=False)
        return
    found = translate_unit(unit, (), controls, has_init=False)
    assert found is not None
    text = case["serialized"].replace("Model: None", "Model: x")
    if not case["expected"]["enabled"]:  # upstream checks the numbers of enabled units only
        text = (
            text.replace("Processor Res: -1", "Processor Res: 512")
            .replace("A: -1,", "A: 0.5,")
            .replace("B: -1,", "B: 0.5,")
        )
    assert found.text == text
    assert found.shown == case["expected"]["save_detected_map"]


@pytest.mark.parametrize(
    "unit",
    [
        {"module": "depth_midas", "model": "gone [01234567]", "image": IMAGE},
        {"resize_mode": "Envelope"},
        {"guidance_start": 0.6, "guidance_end": 0.4},
        {"hr_option": "both", "advanced_weighting": [1.0] * 5},
    ],
)
def test_a_unit_that_is_off_may_say_anything(unit: Any) -> None:
    """Clients send every unit of their form, each with what it last had."""
    assert translate_unit({**unit, "enabled": False}, (), [Named("x")], has_init=False) is None
    with pytest.raises(WireError):
        translate_unit({"image": IMAGE, **unit, "enabled": True}, (), [Named("x")], has_init=False)


def test_a_module_that_needs_weights_is_named_as_such() -> None:
    with pytest.raises(UnknownName, match="needs weights"):
        find_module("depth_midas")
    with pytest.raises(UnknownName, match="draws nothing"):
        find_module("revision_clipvision")
    with pytest.raises(UnknownName, match="canny"):
        find_module("cany")
    with pytest.raises(UnknownName, match=r"InsightFace.*ip-adapter-plus-face"):
        find_module("ip-adapter_face_id")
    with pytest.raises(UnknownName, match=r"InsightFace.*ip-adapter-plus-face_sdxl"):
        find_module("ip-adapter_pulid")


LOOKING = ("ip-adapter-auto", "ip-adapter_clip_sd15", "ip-adapter_clip_h")
LOOKING_FOR_SDXL = ("ip-adapter_clip_sdxl", "ip-adapter_clip_g", "ip-adapter_clip_sdxl_plus_vith")


@pytest.mark.parametrize(("num", "middle"), [(16, 6), (11, 4)])
def test_an_ip_adapters_weights_are_counted_as_a_step_calls_the_transformers(num: int, middle: int) -> None:
    """A1111 parity: its lists go encoder, middle, decoder; a request's have the middle last, as the files do."""
    weights = [i / 10 for i in range(num)]
    unit = {"model": "x", "module": "ip-adapter-auto", "image": IMAGE, "advanced_weighting": weights}
    found = translate_unit(unit, (), [Named("x")], has_init=False)
    assert found is not None
    assert found.fields["layers"] == [*weights[:middle], *weights[middle + 1 :], weights[middle]]
    with pytest.raises(WireError, match=r"IP-Adapters 16 or 11 \(given: 12\)"):
        translate_unit(unit | {"advanced_weighting": [1.0] * 12}, (), [Named("x")], has_init=False)


@pytest.mark.parametrize("module", [*LOOKING, *LOOKING_FOR_SDXL])
def test_an_ip_adapter_looks_at_the_picture_itself(module: str) -> None:
    """One picture a unit, or several, whose mean is meant; a pair of texts stays an image with its mask."""
    unit: Any = {"model": "ip-adapter_sd15", "module": module, "image": IMAGE, "advanced_weighting": [1.0] * 16}
    found = translate_unit(unit, (), [Named("ip-adapter_sd15")], has_init=False)
    assert found is not None and (found.fields["annotate"], len(found.fields["layers"])) == ("none", 16)  # pyright: ignore[reportArgumentType]
    assert f"Module: {module}," in found.text
    several = [{"image": IMAGE}, {"image": IMAGE}]
    assert parts_of(unit | {"image": several}) == [unit | {"image": one, "mix": True} for one in several]
    assert parts_of(unit | {"image": [IMAGE, IMAGE]}) == [unit | {"image": [IMAGE, IMAGE]}]
    assert len(parts_of(unit | {"module": "canny", "image": several})) == 1


@pytest.mark.parametrize("num", [13, 10, 4, 16, 11, 12])
def test_weights_by_layer_are_as_many_as_some_control_has(num: int) -> None:
    """Of a ControlNet, of one of SDXL, of a T2I-Adapter, of an IP-Adapter, of one of SDXL; not 12."""
    unit = {"model": "x", "module": "none", "image": IMAGE, "advanced_weighting": [0.5] * num}
    if num == 12:
        with pytest.raises(WireError, match="SDXL 10, T2I-Adapters 4"):
            translate_unit(unit, (), [Named("x")], has_init=False)
        return
    found = translate_unit(unit, (), [Named("x")], has_init=False)
    assert found is not None and found.fields["layers"] == [0.5] * num


@pytest.mark.parametrize("name", ["reference_only", "reference_adain", "reference_adain+attn"])
def test_a_reference_is_a_module_without_a_model(name: str) -> None:
    unit = {"module": name, "model": "None", "image": IMAGE, "threshold_a": 0.25, "control_mode": 2}
    found = translate_unit(unit, (), [Named("x")], has_init=False)
    assert found is not None and found.warnings == ()
    told = {"name": name.replace("_", "-").replace("+", "-"), "annotate": "none", "params": {"fidelity": 0.25}}
    assert {key: found.fields[key] for key in told} == told
    request = ControlUnit(**{**found.fields, "layers": ()})  # as the house reads it
    ours = unit_text(request, None)
    for text in (found.text, ours):
        assert text.startswith(f"Module: {name}, Model: None, Weight: 1.0,") and ", Threshold A: 0.25," in text
    assert "needs no model" in seen(name, None).warnings[0]
    unset = translate_unit({"module": name, "image": IMAGE}, (), [], has_init=False)
    assert unset is not None and unset.fields["params"] == {"fidelity": 0.5}
    rows = [(module.known.label, module.known.tags) for module in modules()]
    assert control_type("Reference", rows, ["None", "x"])["module_list"] == [
        *("none", "reference_only", "reference_adain+attn", "reference_adain")
    ]


@pytest.mark.parametrize(
    ("name", "params"),
    [("tile_colorfix", {"variation": 5}), ("tile_colorfix+sharp", {"variation": 5, "sharpness": 1.5})],
)
def test_a_colour_fix_is_beside_its_model_in_every_step_and_everywhere(name: str, params: dict[str, Any]) -> None:
    unit: Any = {"module": name, "model": "x", "image": IMAGE, "threshold_a": 5.9, "threshold_b": 1.5, "weight": 1.4}
    more = {"guidance_end": 0.5, "control_mode": 2, "hr_option": "High res only", "effective_region_mask": IMAGE}
    found = translate_unit({**unit, **more}, (), [Named("x")], has_init=False)
    assert found is not None and found.warnings == () and found.beside is not None
    own = {"name": "x", "annotate": "none", "params": {}, "strength": 1.4, "end": 0.5, "mode": "control"}
    assert {key: found.fields[key] for key in own} == own
    fix = ControlUnit(**found.beside)  # pyright: ignore[reportArgumentType]
    assert fix == ControlUnit(
        name="tile-colorfix", image=IMAGE, annotate="none", params=params, strength=1.0, passes="hires"
    )
    thresholds = "Threshold A: 5.9, Threshold B: " + ("1.5" if "sharpness" in params else "0.5")
    assert found.text.startswith(f"Module: {name}, Model: x, Weight: 1.4,") and thresholds in found.text
    assert unit_text(fix, None).startswith(f"Module: {name}, Model: None, Weight: 1.0,")
    assert all(f"Threshold {'AB'[i]}: {value}," in unit_text(fix, None) for i, value in enumerate(params.values()))


def test_a_colour_fix_without_a_model_is_one_alone() -> None:
    unit = {"module": "tile_colorfix+sharp", "image": IMAGE, "threshold_a": 99, "guidance_end": 0.5}
    found = translate_unit(unit, (), [], has_init=False)
    assert found is not None and found.beside is None
    fix = ControlUnit(**found.fields)  # pyright: ignore[reportArgumentType]
    assert (fix.name, fix.params, fix.end) == ("tile-colorfix", {"variation": 8, "sharpness": 1.0}, 0.5)
    assert "Model: None, " in found.text and "Threshold A: 8.0, Threshold B: 1.0," in found.text
    rows = [(module.known.label, module.known.tags) for module in modules()]
    tile = control_type("Tile", rows, ["None"])["module_list"]
    assert tile == ["none", "tile_resample", "tile_colorfix+sharp", "tile_colorfix", "blur_gaussian", "pixelate"]


def test_every_annotator_is_a_module_with_its_sliders() -> None:
    details: Any = module_list()["module_detail"]
    for module in modules():
        theirs = FULL["module_detail"].get(module.known.name)
        assert details[module.known.name] == (theirs or details[module.known.name])
        middle = [(s.min + s.max) / 2 for s in module.threshold_sliders]
        assert set(module.params(*middle)) == set(module.thresholds[: len(middle)])
    assert module_list(labels=True)["module_list"] != module_list()["module_list"]


@pytest.mark.parametrize(
    ("told", "module", "task"),
    [
        ("Unknown", "canny", None),
        ("Depth", "none", "depth"),
        ("Soft Edge", "none", "hed"),
        ("Hard Edge", "lineart_standard", "line-art"),
        ("Normal Map", "none", "normal"),
        ("Segmentation", "none", "seg"),
        ("Inpaint", "inpaint", "inpainting"),
        ("HED/PIDI/Scribble/TED", "none", "hed"),
        ("hedsketch", "none", "hedsketch"),
    ],
)
def test_the_type_of_a_union_is_the_task(told: str, module: str, task: str | None) -> None:
    unit = {"model": "uni", "module": module, "image": IMAGE, "union_control_type": told}
    found = translate_unit(unit, (), [Named("uni")], has_init=False)
    assert found is not None and found.fields["task"] == task


def grey(*columns: int) -> str:
    buffer = BytesIO()
    Image.fromarray(np.array([columns], np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def seen(module: str, mask: str | None, **given: Any) -> Unit:
    unit = {"model": "x", "module": module, "image": IMAGE, "mask": mask}
    found = translate_unit(unit, (), [Named("x")], has_init=True, **given)
    assert found is not None
    return found


def test_modules_that_fill_a_hole_are_shown_its_mask() -> None:
    for unit in (seen("inpaint_global_harmonious", grey(0, 255)), seen("inpaint_only", grey(0, 255), has_mask=True)):
        assert (unit.fields["annotate"], unit.fields["image"], unit.fields["mask"]) == ("inpaint", IMAGE, grey(0, 255))
    with pytest.raises(WireError, match="img2img with a mask"):
        seen("inpaint_only", grey(0, 255))


def test_another_modules_mask_is_the_drawing_unless_it_is_empty_or_full() -> None:
    for empty in (grey(0, 5), grey(250, 255)):
        unit = seen("canny", empty)
        assert (unit.fields["image"], unit.fields["mask"], unit.warnings) == (IMAGE, None, ())
    drawn = seen("canny", grey(0, 255))
    assert (drawn.fields["image"], drawn.fields["mask"]) == (grey(0, 255), None)
    assert "mask is the drawing" in drawn.warnings[0]
    with pytest.raises(WireError, match="cannot be read"):
        seen("canny", IMAGE)


@pytest.mark.parametrize("module", [module.known.name for module in modules() if module.annotator != "inpaint"])
def test_what_any_module_is_asked_to_draw_its_annotator_knows(module: str) -> None:
    found = find_module(module)
    numbers = [slider.value for slider in found.threshold_sliders]
    body = {f"controlnet_threshold_{name}": number for name, number in zip("ab", numbers, strict=False)}
    asked = annotation_of(read_fields(DETECT, body), found, IMAGE, ())
    assert asked.name == found.annotator
    make_params(ANNOTATORS.load(asked.name), asked.params)
