"""Always-on scripts: a payload copied from Forge's page is drawn, what can be done here is, the rest is refused."""

from dataclasses import replace
from typing import Any

import pytest

from disegno.core.freeu import FreeU
from disegno.core.guide import Guide
from disegno.core.request import Request, Tiles
from disegno.diffusion.denoiser import within
from disegno.serving.a1111.always_on import ALWAYS_ON, Drawing, translate_scripts
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.generation import Order, translate
from disegno.serving.a1111.script_args import rows_of
from kit.house import HOUSE

pytestmark = pytest.mark.unit

FREEU = "FreeU Integrated (SD 1.x, SD 2.x, SDXL)"
PAG = "PerturbedAttentionGuidance Integrated"
EXTENSION = "Perturbed-Attention Guidance"
MULTI = "MultiDiffusion Integrated"
OOM = "Never OOM Integrated"
# what the button of Forge's page that shows a request gives for plain text to image
COPIED: dict[str, Json] = {
    "API payload": {"args": []},
    "Comments": {"args": []},
    "ControlNet": {"args": [{"enabled": False, "module": "None", "model": "None", "image": None}]},
    "DynamicThresholding (CFG-Fix) Integrated": {
        "args": [False, 7, 1, "Constant", 0, "Constant", 0, 1, "enable", "MEAN", "AD", 1]
    },
    "Extra options": {"args": []},
    FREEU: {"args": [False, 1.01, 1.02, 0.99, 0.95, 0, 1]},
    "Hypertile Integrated": {"args": [True, 256, 2, 0, False]},
    "Kohya HRFix Integrated": {"args": [False, 3, 2, 0, 0.35, True, "bicubic", "bicubic"]},
    "LatentModifier Integrated": {"args": ["False", 0, "anisotropic"]},
    "LayerDiffuse": {"args": [False, "(SDXL) Only Generate Transparent Image", 1, 1, None]},
    MULTI: {"args": [False, "MultiDiffusion", 768, 768, 64, 4]},
    OOM: {"args": [False, False]},
    PAG: {"args": [False, 3, 0, 0, 1]},
    "Refiner": {"args": [False, "", 0.8]},
    "Sampler": {"args": [20, "DPM++ 2M", "Automatic"]},
    "Seed": {"args": [-1, False, -1, 0, 0, 0]},
    "StyleAlign Integrated": {"args": [False, 1]},
}


def order(scripts: dict[str, Any], **body: Any) -> Order:
    return translate("txt2img", {"prompt": "a cat", "seed": 1, "steps": 20, **body, "alwayson_scripts": scripts}, HOUSE)


def drawn(title: str, *args: Json, **body: Any) -> Request:
    return order({title: {"args": list(args)}}, **body).requests[0]


def test_a_payload_that_was_copied_from_forges_page_is_drawn() -> None:
    plain, copied = order({}), order(COPIED)
    assert copied.requests == plain.requests
    page, needless, off = copied.warnings
    assert "Comments, Extra options, Refiner, Sampler, Seed do nothing" in page
    assert needless == "The always-on scripts API payload, Hypertile Integrated change no picture, and are passed over."
    assert "Kohya HRFix Integrated, LatentModifier Integrated, LayerDiffuse, StyleAlign Integrated are not" in off


@pytest.mark.parametrize(
    ("start", "end", "count"),
    [(0, 1, 20), (0.15, 0.6, 21), (0.2, 0.8, 7), (0.5, 0.5, 3), (0, 0, 5), (1, 1, 4), (0, 1, 1)],
)
def test_the_same_steps_act_as_in_forge(start: float, end: float, count: int) -> None:
    theirs = [k for k in range(count) if start <= k / max(count - 1, 1) <= end]
    made = translate_scripts({PAG: [True, 3, 0, start, end]}, Drawing(count)).fields
    own = [float(str(made[f"guide.pag_{name}"])) for name in ("start", "end")]
    assert [k for k in range(count) if within(k / count, *own)] == theirs
    assert Guide(pag=3, pag_start=own[0], pag_end=own[1])


def test_a_picture_that_is_changed_counts_the_steps_that_are_done() -> None:
    body: dict[str, Json] = {"init_images": ["iVBORw0KGgo="], "steps": 20, "denoising_strength": 0.5}
    asked: dict[str, Any] = {**body, "alwayson_scripts": {PAG: [True, 3, 0, 0.5, 1]}}
    (request,) = translate("img2img", asked, HOUSE).requests
    assert request.guide == Guide(pag=3, pag_start=round(4.5 / 11, 6))  # 11 steps are done, and 5 of 10 is half of them


def test_freeu() -> None:
    usual = FreeU(b1=1.01, b2=1.02, s1=0.99, s2=0.95)
    assert drawn(FREEU, True).freeu == drawn("freeu integrated", True, 1.01).freeu == usual
    asked = drawn(FREEU, True, 1.3, 1.4, 0.9, 0.2, 0, 0.5).freeu
    assert asked == FreeU(b1=1.3, b2=1.4, s1=0.9, s2=0.2, end=round(9.5 / 20, 6))
    told = order({FREEU: [True, 1.3, 1.4, 0.9, 0.2, 0.8, 0.2]})
    assert told.requests[0].freeu is None and "no step lies between" in told.warnings[0]
    with pytest.raises(WireError, match=r"alwayson_scripts\.FreeU.*b1: ensure this value is less than or equal to 2"):
        drawn(FREEU, True, 2.5)


def test_perturbed_attention() -> None:
    assert drawn(PAG, True).guide == drawn("Perturbed Attention Guidance Integrated", True, 3.0).guide == Guide(pag=3)
    reforge = drawn(f"{PAG} (SD1.x, SD2.x, SDXL)", True, steps=21).guide
    assert reforge == Guide(pag=3, pag_start=round(2.5 / 21, 6), pag_end=round(12.5 / 21, 6))
    assert drawn(PAG, True, 0).guide is None
    with pytest.raises(WireError, match="attenuation: not built in here: leave it at 0"):
        drawn(PAG, True, 3, 10)
    with pytest.raises(WireError, match="at most 5 arguments are known"):
        drawn(PAG, True, 3, 0, 0, 1, "Hires Only")


@pytest.mark.parametrize(
    "args",
    [
        [True, 4],
        [True, 4, 0, "middle", 0],
        [True, 4, 0, "middle", 0, False, 7, 3, 0],
        [True, 4, 0, "full", 0, "middle", 0, "", False, 7, 3, 0, "full", 0, -1, -1],
        [True, 4, 0, "full", 0, "Both", "middle", 0, "", False, 7, 3, 0, "full", 0, -1, -1],
    ],
)
def test_perturbed_attention_as_the_extension_has_it(args: list[Json]) -> None:
    assert drawn(EXTENSION, *args).guide == Guide(pag=4)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ([True, 4, 0.1], "adaptive_scale"),
        ([True, 4, 0, "input", 4], "block"),
        ([True, 4, 0, "middle", 0, True], "hr_override"),
        ([True, 4, 0.5, "full", 0], "rescale"),
        ([True, 4, 0, "snf", 0], "rescale_mode"),
        ([True, 4, 0, "full", 0, "HRFix Only", "middle"], "hr_mode"),
        ([True, 4, 0, "full", 0, "middle", 0, "d2.2-9"], "block_list"),
        ([True, 4, 0, "full", 0, "middle", 0, "", False, 7, 3, 0, "full", 0, 5.0], "sigma_start"),
    ],
)
def test_of_the_extension_only_what_means_the_same_is_done(args: list[Json], name: str) -> None:
    with pytest.raises(WireError, match=rf"\.{name}: not built in here"):
        drawn(EXTENSION, *args)


def test_multidiffusion() -> None:
    assert drawn(MULTI, True).tiles == Tiles(size=768, overlap=64 / 768)
    assert drawn(MULTI, True, "MultiDiffusion", 1024, 516, 480).tiles == Tiles(size=512, overlap=0.75)
    assert drawn(MULTI, True, "MultiDiffusion", 16, 8192).tiles == Tiles(size=64, overlap=0.75)
    mixed = order({MULTI: [True, "Mixture of Diffusers"]})
    assert mixed.requests[0].tiles == Tiles(size=768, overlap=64 / 768)
    assert "it is drawn as MultiDiffusion" in mixed.warnings[0]
    with pytest.raises(WireError, match="leave out seamless, or tiles"):
        drawn(MULTI, True, tiling=True)


def test_never_oom() -> None:
    assert drawn(OOM, False, True).vae_tile == 512
    whole = order({OOM: [True, True]}, tiling=True)
    assert whole.requests[0].vae_tile is None
    assert [told.partition(": ")[2][:7] for told in whole.warnings] == ["what is", "the VAE"]
    fork = order({OOM: ["Normal", True, 768, 768, 64, "original"]})
    assert (fork.requests[0].vae_tile, fork.warnings) == (512, ())


def test_two_scripts_that_say_the_same_are_refused() -> None:
    with pytest.raises(WireError, match=r"Two always-on scripts say guide\.pag"):
        order({PAG: [True], EXTENSION: [True]})


def test_a_scripts_own_fields_win_and_the_settings_tiling_counts() -> None:
    house = replace(HOUSE, settings={"tiling": True})
    body: dict[str, Json] = {"prompt": "x", "alwayson_scripts": {OOM: [False, True]}}
    assert translate("txt2img", body, house).requests[0].vae_tile is None


def test_what_is_no_list_of_arguments_is_refused() -> None:
    with pytest.raises(WireError, match="arguments are a list"):
        order({FREEU: {"args": {"start_ratio": 0.1}}})
    assert order({FREEU: {}, PAG: {"args": None}}).requests == order({}).requests


def test_they_are_listed_with_their_arguments() -> None:
    assert {title: [row["label"] for row in rows_of(title)][:1] for title in ALWAYS_ON[2:]} == {
        FREEU.lower(): ["Enabled"],
        PAG.lower(): ["Enabled"],
        EXTENSION.lower(): ["Enabled"],
        MULTI.lower(): ["Enabled"],
        OOM.lower(): ["Enabled for UNet (always maximize offload)"],
    }
