"""Pictures of A1111 are made again: its text, from each kind of file that it writes, becomes a Request."""

import json
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from disegno.backbones import miniature
from disegno.cli.request import build_request
from disegno.core.errors import BadImage, RequestError, UnknownName
from disegno.core.infotext import read_infotext
from disegno.core.request import ControlUnit, Hires, InitImage, LoraUse, Request, make_request
from disegno.core.result import Result
from disegno.core.told import read_unit, told_of
from disegno.engine.embedded import exif_of, parameters_of
from disegno.engine.record import read
from disegno.engine.writing import write_picture, write_plain

pytestmark = pytest.mark.unit

PLAIN = (
    "a (red:1.2) barn, [sunny:stormy:0.5]\nat noon <lora:ink:0.8>\nNegative prompt: blurry, text\n"
    "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 4007, Size: 512x768, "
    "Model hash: 6ce0161689, Model: v1-5-pruned, Variation seed: 9, Variation seed strength: 0.1, Clip skip: 2, "
    'ENSD: 31337, RNG: CPU, Lora hashes: "ink: 0123456789ab", Version: v1.10.1'
)
OWN = PLAIN.replace("Model hash: 6ce0161689, Model: v1-5-pruned, ", "Model: diorama, ")


VECTORS = Path(__file__).parents[1] / "golden" / "vectors" / "controlnet_infotext.json"


@pytest.mark.parametrize("case", json.loads(VECTORS.read_text("utf-8"))["cases"], ids=lambda case: case["input"])
def test_units_are_read_as_in_the_original(case: dict[str, Any]) -> None:
    if "raises" in case:
        with pytest.raises(ValueError, match="too many values"):
            read_unit(case["input"])
    else:
        assert read_unit(case["input"]) == case["expected"]


def _with(text: str, *pairs: str) -> str:
    return text.replace(", Version", f", {', '.join(pairs)}, Version")


def _file(path: Path, text: str) -> Path:
    picture = Image.new("RGB", (16, 16))
    if path.suffix == ".png":
        info = PngInfo()
        info.add_text("parameters", text)
        picture.save(path, pnginfo=info)
    elif path.suffix == ".gif":
        picture.save(path, comment=text.encode())
    else:
        picture.save(path, exif=exif_of(text))
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif"])
def test_every_kind_of_file_that_a1111_writes(name: str, tmp_path: Path) -> None:
    request, only = build_request(None, _file(tmp_path / name, OWN), (), None, {})
    expected = Request(
        prompt="a (red:1.2) barn, [sunny:stormy:0.5]\nat noon <lora:ink:0.8>", negative="blurry, text", model="diorama",
        steps=25, sampler="DPM++ 2M", schedule="Karras", cfg=6.5, seed=4007, width=512, height=768, subseed=9,
        subseed_strength=0.1, clip_skip=2, seed_delta=31337,
    )  # fmt: skip
    assert request == expected and only == 0
    assert not told_of(OWN).doubts


def test_flags_change_what_the_picture_says(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.png", OWN)
    request, _ = build_request("a barn", path, ("canny=x.png",), "256x256", {"seed": 1, "batch": 2})
    assert (request.prompt, request.seed, request.width, request.steps) == ("a barn", 1, 256, 25)
    assert request.controls[0].name == "canny"


def test_the_model_is_looked_for_by_hash_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(tmp_path / "models"))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(tmp_path / "cache"))
    path = _file(tmp_path / "a.png", PLAIN)
    with pytest.raises(UnknownName, match=r"'6ce0161689' or 'v1-5-pruned', which is not in your model folders"):
        build_request(None, path, (), None, {})
    assert build_request(None, path, (), None, {"model": "other"})[0].model == "other"
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "v1-5-pruned.safetensors"
    miniature.write_sd1_checkpoint(file)
    assert build_request(None, path, (), None, {})[0].model == str(file)


def test_a_hires_pass_comes_back(tmp_path: Path) -> None:
    text = _with(OWN, "Denoising strength: 0.0", "Hires upscale: 1.5", "Hires steps: 7", "Hires upscaler: Lanczos",
                 "Hires CFG Scale: 0.0")  # fmt: skip
    request, _ = build_request(None, _file(tmp_path / "a.png", text), (), None, {})
    assert request.hires == Hires(scale=1.5, steps=7, upscaler="Lanczos", denoise=0.0, cfg=0.0)
    assert request.init is None


def test_steps_without_guidance_and_pictures_without_a_seam_come_back() -> None:
    told = told_of(_with(OWN, "NGMS: 1.5, NGMS all steps: True, Skip Early CFG: 0.1, Tiling: True"))
    expected = {"negative_min": 1.5, "negative_min_all": True, "cfg_start": 0.1, "seamless": True}
    assert not told.doubts and {name: told.fields[name] for name in expected} == expected


def test_guidance_beside_the_scale_comes_back() -> None:
    told = told_of(_with(OWN, "PAG Scale: 3.0, PAG End: 0.7, SLG Scale: 2.8, SLG Layers: 7 8, APG: True"))
    guide = {"pag": 3.0, "pag_end": 0.7, "slg": 2.8, "slg_layers": (7, 8), "apg": True}
    assert not told.doubts and told.fields["guide"] == guide
    assert "guide" not in told_of(OWN).fields


@pytest.mark.parametrize(
    ("said", "guide"),
    [
        ("pagi_enabled: True, pagi_scale: 3, pagi_attenuation: 0, pagi_start_step: 0, pagi_end_step: 1", (3, 0, 1)),
        ("pagi_scale: 2.5, pagi_start_step: 0.25, pagi_end_step: 0.5", (2.5, 5.5 / 25, 12.5 / 25)),  # steps 6 to 12
        ("pagi_scale: 2.5, pagi_end_step: 0.5, Denoising strength: 0.4", (2.5, 0, 5.5 / 11)),  # 11 of them are done
        ("pagi_scale: 0, pagi_start_step: 0, pagi_end_step: 1", None),
        ("pagi_scale: 3, pagi_start_step: 0.9, pagi_end_step: 0.1", None),
        ("PAG Scale: 4.0, pagi_scale: 3", (4, 0, 1)),
    ],
)
def test_forges_perturbed_attention_comes_back(said: str, guide: tuple[float, float, float] | None) -> None:
    told = told_of(_with(OWN, said))
    found = make_request(told.fields).guide
    assert (found and (found.pag, found.pag_start, found.pag_end)) == guide
    assert not any("pagi" in doubt for doubt in told.doubts)
    weakening = told_of(_with(OWN, "pagi_scale: 3, pagi_attenuation: 15.0"))
    assert any("pagi_attenuation: 15.0" in doubt for doubt in weakening.doubts)


def test_a_changed_picture_wants_the_picture_that_was_changed(tmp_path: Path) -> None:
    said = "Denoising strength: 0.4, Mask blur: 9, Inpaint area: Only masked, Masked content: latent noise"
    said += ", Conditional mask weight: 0.5, Image CFG scale: 2.5"
    text = _with(OWN, said)
    path = _file(tmp_path / "a.png", text)
    assert build_request(None, path, (), None, {})[0].init is None
    plain, _ = build_request(None, path, (), None, {"init__image": "p.png"})
    assert plain.init == InitImage(image="p.png", denoise=0.4) and plain.image_cfg == 2.5
    masked, _ = build_request(None, path, (), None, {"init__image": "p.png", "init__mask": "m.png", "init__padding": 8})
    assert masked.init == InitImage(
        image="p.png",
        mask="m.png",
        denoise=0.4,
        mask_blur=9,
        only_masked=True,
        fill="noise",
        padding=8,
        mask_weight=0.5,
    )


DOUBTS = {
    "Token merging ratio: 0.5": "Not taken over from the picture's text: Token merging ratio: 0.5.",
    'ControlNet 0: "Module: canny, Model: x [d14c016b], Weight: 0.5, Guidance End: 0.8"': (
        "give it, --control x=IMAGE,annotate=canny,strength=0.5,end=0.8."
    ),
    "ControlNet: old": "give it, with --control.",
    "Token merging ratio hr: 0.5": "Token merging ratio hr: 0.5",
}


@pytest.mark.parametrize("pair", DOUBTS)
def test_what_cannot_be_taken_over_is_said(pair: str) -> None:
    (doubt,) = told_of(_with(PLAIN, pair)).doubts
    assert DOUBTS[pair] in doubt


@pytest.mark.parametrize(("sampler", "eta"), [("Euler a", 0.5), ("DDIM", 0.1), ("DDIM CFG++", 0.1)])
def test_eta_is_the_samplers_own(sampler: str, eta: float) -> None:
    text = _with(PLAIN, "Eta: 0.5", "Eta DDIM: 0.1").replace("DPM++ 2M", sampler)
    assert told_of(text).fields["eta"] == eta


def test_noise_of_a_graphics_card_is_said() -> None:
    told = told_of(PLAIN.replace("RNG: CPU, ", ""))
    assert told.fields["noise_source"] == "nv" and "graphics card" in told.doubts[0]


@pytest.mark.parametrize("value", ["x", "nan", "1e999", "7.5"])
def test_a_value_that_is_no_number_is_an_error(value: str, tmp_path: Path) -> None:
    text = OWN.replace("Steps: 25", f"Steps: {value}")
    with pytest.raises(RequestError, match="Steps"):
        read(_file(tmp_path / "a.png", text))


def test_other_programs_texts_are_no_parameters(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("prompt", '{"3": {"class_type": "KSampler"}}')
    Image.new("RGB", (8, 8)).save(tmp_path / "comfy.png", pnginfo=info)
    with pytest.raises(BadImage, match="does not say how it was made"):
        read(tmp_path / "comfy.png")
    with pytest.raises(RequestError, match="says nothing of steps"):
        read(_file(tmp_path / "a.png", "a holiday photo"))


def _result() -> Result:
    unit = ControlUnit(name="canny", image="p.png", strength=0.7, resize="fill", mode="prompt", end=0.5)
    request = Request(
        prompt="x", seed=1, batch=2, steps=4, sampler="Heun", schedule="Karras", cfg=3.0, width=64, height=64,
        subseed=5, controls=(unit,), loras=(LoraUse(name="ink", strength=0.5, text_strength=0.25, rank=4),),
    )  # fmt: skip
    images = (Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue"))
    return Result(
        images=images, request=request, seeds=(1, 2), prompts=("a fox", "an owl"), negatives=("", "no"),
        labels={"Model": "diorama", "ControlNet 0": "Module: canny, Model: canny"}, environment={"disegno": "0.1.0"},
    )  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    text = parameters_of(_result(), 1)
    assert text == (
        "an owl <lora:ink:0.25:unet=0.5:dyn=4>\nNegative prompt: no\n"
        "Steps: 4, Sampler: Heun, Schedule type: Karras, CFG scale: 3.0, Seed: 2, Size: 64x64, Model: diorama, "
        'RNG: CPU, ControlNet 0: "Module: canny, Model: canny", Version: Disegno 0.1.0'
    )
    for name in ("a.png", "a.jpg", "a.webp"):
        write_picture(tmp_path / name, _result(), 1)
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (64, 64) and picture.convert("RGB").getpixel((9, 9))[2] > 240
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.info["parameters"] == text
    for name in ("a.jpg", "a.webp"):
        request, _ = build_request(None, tmp_path / name, (), None, {})
        assert (request.prompt, request.negative, request.seed) == (text.partition("\n")[0], "no", 2)
    assert read(tmp_path / "a.png").request.controls == _result().request.controls  # our own record is preferred


def test_other_endings_and_too_long_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"\.bmp.*\.webp"):
        write_picture(tmp_path / "a.bmp", _result(), 0)
    with pytest.raises(RequestError, match=r"WEBP file cannot hold this picture of 17000 x 1 pixels.*\.png"):
        write_plain(tmp_path / "a.webp", Image.new("RGB", (17000, 1)))
    long = replace(_result(), prompts=("word " * 9000, "x"))
    with pytest.raises(RequestError, match=r"JPEG file holds 65527"):
        write_picture(tmp_path / "a.jpg", long, 0)
    write_picture(tmp_path / "a.webp", long, 0)
    assert read_infotext(parameters_of(long, 0))["Prompt"].count("word") == 9000
    assert read(tmp_path / "a.webp").request.prompt.count("word") == 9000


@pytest.mark.parametrize("name, key", [("infotext_create", "expected"), ("infotext_parse", "input")])
def test_every_text_that_a1111_wrote_is_a_request_or_is_said_to_be_none(name: str, key: str) -> None:
    for case in json.loads(VECTORS.with_name(f"{name}.json").read_text("utf-8"))["cases"]:
        if "Steps: " not in case[key]:
            with pytest.raises(RequestError, match="says nothing of steps"):
                told_of(case[key])
            continue
        told = told_of(case[key])
        request = make_request(told.fields)
        assert request.steps and request.seed >= -1
        assert not any("First pass" in doubt for doubt in told.doubts)


def test_pictures_of_novelai_are_told_in_a1111s_words(tmp_path: Path) -> None:
    comment = {"steps": 28, "sampler": "k_dpmpp_2m", "seed": 77, "scale": 11.0, "uc": "lowres, bad"}
    for content, expected in ((json.dumps(comment), 28), ('{"steps": 28}', None), ("[" * 100_000, None)):
        info = PngInfo()
        for name, value in (("Software", "NovelAI"), ("Description", "a {fox}"), ("Comment", content)):
            info.add_text(name, value)
        Image.new("RGB", (64, 128)).save(tmp_path / "a.png", pnginfo=info)
        if expected is None:
            with pytest.raises(BadImage, match="does not say how it was made"):
                read(tmp_path / "a.png")
            continue
        request = read(tmp_path / "a.png").request
        assert (request.prompt, request.negative, request.steps, request.cfg) == ("a {fox}", "lowres, bad", 28, 11.0)
        assert (request.seed, request.height, request.clip_skip, request.seed_delta) == (77, 128, 2, 31337)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif"])
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    path = _file(tmp_path / name, OWN)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in random.integers(0, min(len(data), 400), 3):
            data[place] = random.integers(256)
        path.write_bytes(data)
        with suppress(BadImage, RequestError), warnings.catch_warnings(action="ignore"):
            read(path)
