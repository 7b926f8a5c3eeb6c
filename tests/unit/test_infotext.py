"""A1111's text of a picture: written and read as its own program does, case by case; and a Request goes through it."""

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disegno.core.freeu import FreeU
from disegno.core.guide import Guide
from disegno.core.infotext import of_image, quoted, read_infotext, unquoted, values_of, write_infotext
from disegno.core.request import Hires, LoraUse, Request, make_request
from disegno.core.told import told_of

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[1] / "golden" / "vectors"


def _cases(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize("case", _cases("infotext_parse"), ids=lambda case: repr(case["input"])[-50:])
def test_texts_are_read_as_in_the_original(case: dict[str, Any]) -> None:
    assert read_infotext(case["input"]) == case["expected"]


@pytest.mark.parametrize("case", _cases("infotext_quote"), ids=repr)
def test_values_are_quoted_as_in_the_original(case: dict[str, Any]) -> None:
    if "unquote_input" in case:
        assert unquoted(case["unquote_input"]) == case["unquoted"]
    else:
        assert quoted(case["value"]) == case["quoted"]
        if isinstance(case["value"], str):
            assert unquoted(case["quoted"]) == case["unquoted"]


def _values(case: dict[str, Any], index: int) -> dict[str, Any]:
    """Return what A1111's settings of a case come to, by the names that it writes."""
    p, opts = case["p"], case["opts"]
    resized = p["seed_resize_from_w"] > 0
    skip, varied = p.get("clip_skip", opts["CLIP_stop_at_last_layers"]), p["subseed_strength"] > 0
    merging = p["token"] or None
    values = {
        "Version": "v1.10.1",
        "User": p["user"] if opts["add_user_name_to_info"] else None,
        "Steps": p["steps"],
        "Sampler": p["sampler_name"],
        "Schedule type": p["scheduler"],
        "CFG scale": p["cfg_scale"],
        "Image CFG scale": p.get("image_cfg_scale"),
        "Seed": p["all_seeds"][index],
        "Face restoration": opts["face_restoration_model"] if p["restore_faces"] else None,
        "Size": f"{p['width']}x{p['height']}",
        "Model hash": p["sd_model_hash"],
        "Model": p["sd_model_name"],
        "VAE hash": p["sd_vae_hash"],
        "VAE": p["sd_vae_name"],
        "Variation seed": p["all_subseeds"][index] if varied else None,
        "Variation seed strength": p["subseed_strength"] if varied else None,
        "Seed resize from": f"{p['seed_resize_from_w']}x{p['seed_resize_from_h']}" if resized else None,
        "Conditional mask weight": 1.0 if p["is_using_inpainting_conditioning"] else None,
        "Clip skip": skip if skip > 1 else None,
        "ENSD": opts["eta_noise_seed_delta"] or None if p["sampler_name"] == "Euler a" else None,
        "Token merging ratio": merging,
        "Token merging ratio hr": p["token_hr"] if p.get("enable_hr") and p["token_hr"] else None,
        "Init image hash": p.get("init_img_hash"),
        "RNG": opts["randn_source"] if opts["randn_source"] != "GPU" else None,
        "Tiling": True if p["tiling"] else None,
    }
    for name, value in p["extra_generation_params"].items():
        value = f"idx{index}" if value == "<callable>" else value
        values[name] = value[index] if isinstance(value, list) else value
    return values


@pytest.mark.parametrize("case", _cases("infotext_create"), ids=lambda case: case["expected"][-50:])
def test_texts_are_written_as_in_the_original(case: dict[str, Any]) -> None:
    p, index = case["p"], case["index"] or 0
    main = case["use_main_prompt"]
    prompt = p["main_prompt"] if main else case["all_prompts"][index]
    negative = p["main_negative_prompt"] if main else p["all_negative_prompts"][index]
    assert write_infotext(prompt, negative, _values(case, index)) == case["expected"]


def test_a_request_is_written_and_read() -> None:
    request = Request(
        prompt="unused", steps=12, sampler="Euler a", schedule="Karras", cfg=5.5, width=64, height=128, seed=1,
        clip_skip=2, subseed_strength=0.25, seed_delta=31337, emphasis="no-norm", pad_texts=True, old_timelines=True,
        negative_min=1.5, negative_min_all=True, cfg_start=0.1, seamless=True,
    )  # fmt: skip
    text = write_infotext("a (cat:1.2)\nin snow", "", values_of(request, 7, 9, {"Model": "v1, 5", "Version": "0.1.0"}))
    read = read_infotext(text)
    assert text.startswith("a (cat:1.2)\nin snow\nSteps: 12, Sampler: Euler a, Schedule type: Karras, CFG scale: 5.5")
    expected = {
        "Prompt": "a (cat:1.2)\nin snow", "Size-1": "64", "Size-2": "128", "Model": "v1, 5", "Variation seed": "9",
        "ENSD": "31337", "RNG": "CPU", "Emphasis": "No norm", "Pad conds": "True", "Clip skip": "2",
        "NGMS": "1.5", "NGMS all steps": "True", "Skip Early CFG": "0.1", "Tiling": "True",
    }  # fmt: skip
    assert {name: read[name] for name in expected} == expected


def test_guidance_beside_the_scale_is_written_where_it_is_not_usual() -> None:
    guide = Guide(pag=3.0, pag_end=0.7, slg_layers=(1,), apg=True, apg_norm=5.0, zero_star=False)
    request = Request(steps=12, sampler="Euler", cfg=5.5, width=64, height=64, seed=1, guide=guide)
    read = read_infotext(write_infotext("a", "", values_of(request, 7, 9, {"Version": "0.1.0"})))
    said = {name: value for name, value in read.items() if name.startswith(("PAG", "SLG", "APG", "CFG Zero"))}
    assert said == {"PAG Scale": "3.0", "PAG End": "0.7", "APG": "True", "APG Norm": "5.0"}


def test_freeu_is_written_where_it_acts_and_read_again() -> None:
    for freeu, same in (
        (FreeU(), FreeU()),
        (FreeU(strength=0.5, b1=1.5, version=1, end=0.7), FreeU(b1=1.25, b2=1.2, s1=0.95, s2=0.6, version=1, end=0.7)),
    ):
        request = Request(steps=12, sampler="Euler", cfg=5.5, width=64, height=64, seed=1, freeu=freeu)
        told = told_of(write_infotext("a", "", values_of(request, 7, 9, {"Version": "0.1.0"})))
        assert make_request(told.fields).freeu == same, "Forge's names, and Forge has no strength"
        assert not any("freeu" in doubt for doubt in told.doubts)
    off = Request(steps=12, sampler="Euler", cfg=5.5, width=64, height=64, seed=1, freeu=FreeU(strength=0))
    assert "freeu" not in write_infotext("a", "", values_of(off, 7, 9, {"Version": "0.1.0"}))


def test_the_hires_words_are_each_images_own_in_full() -> None:
    hires = Hires(prompt="a __animal__", prompts=("a cat", "a dog"), negative="blur")
    asked = Request(batch=2, hires=hires, loras=(LoraUse(name="ink", strength=0.5),))
    told = [values_of(of_image(asked, image), 7, 9, {}) for image in (0, 1)]
    assert [each["Hires prompt"] for each in told] == ["a cat <lora:ink:0.5>", "a dog <lora:ink:0.5>"]
    assert [each["Hires negative prompt"] for each in told] == ["blur", "blur"]
    assert values_of(of_image(Request(hires=Hires()), 0), 7, 9, {})["Hires prompt"] is None


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("v1.5.2", {"Old prompt editing timelines": True, "Pad conds v0": True, "Downcast alphas_cumprod": True}),
        ("v1.6.0", {"Downcast alphas_cumprod": True}),
        ("v1.7.0-225-g123", {}),
        ("v1.10.1", {}),
        ("neo", {}),
    ],
)
def test_older_versions_did_some_things_otherwise(version: str, told: dict[str, Any]) -> None:
    read = read_infotext(f"[a:b:0.5]\nSteps: 2, Sampler: DDIM, CFG scale: 7, Version: {version}")
    names = ("Old prompt editing timelines", "Pad conds v0", "Downcast alphas_cumprod")
    assert {name: read[name] for name in names if name in read} == told


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from(list('aA1 ,:"\\\n-/x[](é')), max_size=60))
def test_nothing_fails(text: str) -> None:
    read_infotext(text)
    read_infotext(f"{text}\nSteps: 1, Sampler: a, Seed: {text}")
    assert unquoted(str(quoted(text))) == text or '"' in text


@pytest.mark.parametrize("said", ["size-1: a, First pass size-2: 3", "size-1: 3", "size: 0x0, Size-1: b, Size-2: 1"])
def test_a_first_pass_of_no_size_says_nothing(said: str) -> None:
    assert read_infotext(f"a\nSteps: 1, Sampler: a, Seed: 1, First pass {said}")["Hires resize-1"] == 0


@pytest.mark.parametrize("unit", ["a", "a:", '"', '\\"', "a ,", ":", " ", "x1x", 'ab: "'])
def test_time_is_linear(unit: str) -> None:
    begin = perf_counter()
    read_infotext(unit * (100_000 // len(unit)))
    assert perf_counter() - begin < 5  # measured: up to 0.3 s
