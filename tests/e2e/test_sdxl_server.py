"""`disegno serve` with Stable Diffusion XL: base and refiner through `/v1`, OpenAI's form, A1111's; on miniatures."""

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disegno.backbones import miniature, miniature_sdxl, sdxl
from disegno.backbones.miniature_sdxl import Sdxl
from disegno.engine.record import data_uri
from disegno.memory import FULL_PRECISION, Memory
from kit import control_lora
from kit.server import Server, start

pytestmark = pytest.mark.e2e

SMALL: dict[str, Any] = {"prompt": "a cat", "width": 64, "height": 64, "steps": 5, "seed": 3}
NATIVE = SMALL | {"negative": "x", "model": "base", "sampler": "Euler a", "cfg": 7.0, "noise_source": "nv"}
A1111 = SMALL | {
    "negative_prompt": "x",
    "sampler_name": "Euler a",
    "cfg_scale": 7.0,
    "override_settings": {"sd_model_checkpoint": "base"},
}
REFINER = {"refiner_checkpoint": "refiner", "refiner_switch_at": 0.8}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    models = folder / "models"
    miniature_sdxl.write_file(models / "base.safetensors")
    miniature_sdxl.write_folder(models / "refiner", Sdxl(seed=5, refines=True))
    miniature_sdxl.write_file(models / "inpainter.safetensors", Sdxl(in_channels=9))
    miniature.write_sd1_checkpoint(models / "one.safetensors")
    net = sdxl.open(models / "base.safetensors", Memory(FULL_PRECISION)).net
    control_lora.write(models / "control-lora-canny-rank4.safetensors", net, 5)
    server = start(
        folder / "server", "--device", "cpu", log=folder / "log", DISEGNO_MODEL_DIRS=str(models),
        DISEGNO_CACHE_DIR=str(folder / "cache"), DISEGNO_DTYPE="fp32",
    )  # fmt: skip
    yield server.wait_ready()
    assert server.stop() == 0


def _opened(content: bytes) -> np.ndarray:
    with Image.open(BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def _native(server: Server, **more: Any) -> np.ndarray:
    job = server.wait(server.submit("generate", NATIVE | more)["id"])
    assert job["state"] == "done", job
    return _opened(server.ask("GET", job["result"]["files"][0]["url"]).content)


def _a1111(server: Server, route: str = "txt2img", **more: Any) -> tuple[np.ndarray, dict[str, Any]]:
    answer = server.ask("POST", f"/sdapi/v1/{route}", A1111 | more)
    assert answer.ok, answer.text
    told = answer.json()
    return _opened(base64.b64decode(told["images"][0])), json.loads(told["info"])


def test_the_refiner_goes_on_at_every_door(server: Server) -> None:
    alone, refined = _native(server), _native(server, refiner={"model": "refiner", "at": 0.8})
    assert (alone != refined).any()
    picture, told = _a1111(server, **REFINER)
    assert np.abs(picture - refined).max() <= 1
    assert "Refiner: refiner" in told["infotexts"][0] and "Refiner switch at: 0.8" in told["infotexts"][0]
    assert np.abs(_a1111(server)[0] - alone).max() <= 1
    body = {"model": "base", "prompt": "a cat", "size": "64x64", "steps": 2, "refiner": {"model": "refiner"}}
    answer = server.ask("POST", "/v1/images/generations", body)
    assert answer.ok, answer.text
    assert _opened(base64.b64decode(answer.json()["data"][0]["b64_json"])).shape == (64, 64, 3)


def test_both_passes_and_pictures_from_pictures(server: Server) -> None:
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 2, "denoising_strength": 0.6}
    assert _a1111(server, **hires, **REFINER)[0].shape == (96, 96, 3)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    photo = Image.effect_noise((64, 64), 90).convert("RGB")
    given = {"init_images": [data_uri(photo)], "denoising_strength": 0.9}
    changed = _a1111(server, "img2img", **given, **REFINER)[0]
    inpainter = {"override_settings": {"sd_model_checkpoint": "inpainter"}}
    masked = {"mask": data_uri(Image.fromarray(mask)), "mask_blur": 0, "inpainting_fill": 1}
    filled = _a1111(server, "img2img", **given, **masked, **inpainter)[0]
    own = np.asarray(photo).astype(int)
    assert np.abs(filled - own)[:, :28].mean() < 1 < np.abs(filled - own)[:, 36:].mean()
    assert (changed != filled).any()


def test_models_are_listed_and_of_what_family(server: Server) -> None:
    titles = {model["model_name"] for model in server.get("/sdapi/v1/sd-models")}
    assert {"base", "refiner", "inpainter", "one"} <= titles
    cards = {card["id"]: card for card in server.get("/v1/models")["data"]}
    families = {name: card["family"] for name, card in cards.items()}
    assert (cards["refiner"]["defaults"]["width"], cards["base"]["defaults"]["height"]) == (1024, 1024)
    assert {families[name] for name in ("base", "refiner", "inpainter")} == {"sdxl"} and families["one"] == "sd1"


def test_a_control_lora_at_every_door(server: Server) -> None:
    """By A1111's units as by a request; of another family it is refused in words."""
    name, edges = "control-lora-canny-rank4", data_uri(Image.effect_noise((64, 64), 90).convert("RGB"))
    cards = {card["name"]: card for card in server.get("/v1/controls")}
    assert (cards[name]["mechanism"], cards[name]["family"]) == ("control-lora", "sdxl")
    listed = next(title for title in server.get("/controlnet/model_list")["model_list"] if name in title)
    assert listed in server.get("/controlnet/control_types")["control_types"]["Canny"]["model_list"]
    unit = {"image": edges, "module": "none", "model": listed, "weight": 0.8, "guidance_end": 0.9}
    drawn, told = _a1111(server, alwayson_scripts={"controlnet": {"args": [unit]}})
    ours = {"name": name, "image": edges, "annotate": "none", "strength": 0.8, "end": 0.9}
    assert np.abs(drawn - _native(server, controls=[ours])).max() <= 1
    assert (drawn != _native(server)).any() and name in told["infotexts"][0]
    other = {"override_settings": {"sd_model_checkpoint": "one"}, "alwayson_scripts": {"controlnet": {"args": [unit]}}}
    refused = server.ask("POST", "/sdapi/v1/txt2img", A1111 | other)
    assert refused.status_code == 422 and "is for sdxl, the open model is sd1" in refused.text, refused.text


def test_a1111s_settings_of_sdxl_act(server: Server) -> None:
    own = A1111["override_settings"]
    plain, refined = _a1111(server)[0], _a1111(server, **REFINER)[0]
    cropped, _ = _a1111(server, override_settings=own | {"sdxl_crop_top": 512, "sdxl_crop_left": 256})
    assert (cropped != plain).any()
    assert np.abs(cropped - _native(server, crop_top=512, crop_left=256)).max() <= 1
    scores = {"sdxl_refiner_high_aesthetic_score": 9.0, "sdxl_refiner_low_aesthetic_score": 1.0}
    fine, _ = _a1111(server, **REFINER, override_settings=own | scores)
    assert (fine != refined).any()
    told = {"beauty": 9.0, "plainness": 1.0, "refiner": {"model": "refiner", "at": 0.8}}
    assert np.abs(fine - _native(server, **told)).max() <= 1
    _, said = _a1111(server, override_settings=own | {"sdxl_clip_l_skip": True})
    assert "sdxl_clip_l_skip has no effect here" in " ".join(said["warnings"])
    _, said = _a1111(server, override_settings={"sd_model_checkpoint": "one", "sdxl_crop_top": 64})
    assert "passed over: crop_top" in " ".join(said["warnings"])


def test_a_plot_compares_models_of_two_families(server: Server) -> None:
    script = {"script_name": "x/y/z plot", "script_args": [11, "base,one", [], 0, "", [], 0, "", [], True, False, False,
              False, False, False, False, 0]}  # fmt: skip
    picture, _ = _a1111(server, **script)
    assert picture.shape[1] >= 128


def test_jobs_of_two_sizes_and_both_models_are_drawn_together(server: Server) -> None:
    sizes = [(64, 64), (96, 64), (64, 96)]
    jobs = [server.submit("generate", NATIVE | {"width": w, "height": h})["id"] for w, h in sizes]
    jobs.append(server.submit("generate", NATIVE | {"refiner": {"model": "refiner", "at": 0.8}})["id"])
    ended = [server.wait(job) for job in jobs]
    assert all(job["state"] == "done" for job in ended)
    drawn = [_opened(server.ask("GET", job["result"]["files"][0]["url"]).content) for job in ended]
    assert [picture.shape[1::-1] for picture in drawn[:3]] == sizes
    assert np.abs(drawn[0] - _native(server)).max() <= 1
    assert np.abs(drawn[1] - _native(server, width=96)).max() <= 1
