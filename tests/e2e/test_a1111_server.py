"""`disegno serve` as A1111's clients see it: the unmodified package webuiapi, and what other clients send."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image, ImageDraw
from webuiapi import ControlNetUnit, WebUIApi

from disegno.weights.built_in import shipped
from kit.vae import write_bright_vae

pytestmark = pytest.mark.e2e

START_SECONDS = 90
USER, PASSWORD = "anna", "a-long-password"
SIZE = 64
FEW: dict[str, Any] = {"steps": 2, "width": SIZE, "height": SIZE}
STYLES = 'name,prompt,negative_prompt\nink,"{prompt}, an ink drawing",photo\n'


@dataclass
class Server:
    """A running server, and who asks it."""

    process: "subprocess.Popen[str]"
    url: str
    models: Path

    def ask(self, method: str, path: str, body: Any = None, auth: tuple[str, str] | None = (USER, PASSWORD)) -> Any:
        return requests.request(method, self.url + path, json=body, auth=auth, timeout=120)

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.ask("POST", path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def client(self) -> WebUIApi:
        host, port = self.url.removeprefix("http://").split(":")
        return WebUIApi(host=host, port=int(port), username=USER, password=PASSWORD)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    prompts = tmp_path_factory.mktemp("prompts")
    (prompts / "styles.csv").write_text(STYLES)
    models = tmp_path_factory.mktemp("models")
    write_bright_vae(models / "bright.safetensors")
    process = subprocess.Popen(
        [sys.executable, "-m", "disegno.cli.main", "serve", "--port", "0", "--folder", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "OMP_NUM_THREADS": "2",
            "DISEGNO_AUTH": f"{USER}:{PASSWORD} bert:another-password",
            "DISEGNO_MODEL_DIRS": str(models),
            "DISEGNO_PROMPT_DIRS": str(prompts),
        },
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://" in line, line
    yield Server(process, line.split()[3], models)
    process.terminate()
    assert process.wait(40) == 0
    process.stdout.close()


@pytest.fixture(scope="module")
def api(server: Server) -> WebUIApi:
    return server.client()


def drawing(size: int = SIZE) -> Image.Image:
    picture = Image.new("RGB", (size, size), (120, 60, 30))
    ImageDraw.Draw(picture).rectangle([size // 4, size // 4, 3 * size // 4, 3 * size // 4], fill=(250, 250, 0))
    return picture


def b64(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def opened(text: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(text)))


# ---- webuiapi


def test_a_picture_says_how_it_was_made_and_can_be_made_again(api: WebUIApi) -> None:
    first = api.txt2img(prompt="a cat", negative_prompt="dog", seed=7, **FEW)
    assert first.image.size == (SIZE, SIZE)
    text = first.image.info["parameters"]
    assert text == first.info["infotexts"][0]
    assert "Steps: 2" in text and "Seed: 7" in text and "Negative prompt: dog" in text
    assert first.info["warnings"] == []
    again = api.txt2img(prompt="a cat", negative_prompt="dog", seed=7, **FEW)
    assert first.image.tobytes() == again.image.tobytes()


def test_a_batch_counts_its_seeds_up_and_each_picture_is_its_own(api: WebUIApi) -> None:
    result = api.txt2img(prompt="a cat", seed=7, batch_size=2, n_iter=2, **FEW)
    assert result.info["all_seeds"] == [7, 8, 9, 10]
    alone = api.txt2img(prompt="a cat", seed=9, **FEW).image
    assert np.abs(np.asarray(result.images[2], np.int16) - np.asarray(alone, np.int16)).max() <= 1  # of a batch of two


def test_names_of_samplers_carry_schedules(api: WebUIApi) -> None:
    result = api.txt2img(prompt="x", seed=1, sampler_name="DPM++ 2M Karras", **FEW)
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in result.info["infotexts"][0]


def test_a_control_unit_steers_and_shows_its_map(api: WebUIApi) -> None:
    unit = ControlNetUnit(image=drawing(), module="canny", model="canny", control_mode=1)
    result = api.txt2img(prompt="x", seed=1, controlnet_units=[unit], **FEW)
    free = api.txt2img(prompt="x", seed=1, **FEW)
    assert len(result.images) == 2 and len(free.images) == 1
    assert 'ControlNet 0: "Module: canny' in result.info["infotexts"][0]
    assert result.info["extra_generation_params"]["ControlNet 0"].startswith("Module: canny")
    assert set(np.unique(np.asarray(result.images[1].convert("L")))) <= {0, 255}
    assert result.images[0].tobytes() != free.image.tobytes()


def test_a_colour_fix_keeps_the_pictures_colours_beside_its_model_and_alone(api: WebUIApi) -> None:
    """One entry and one map for a unit, as A1111 has them."""
    given: dict[str, Any] = {"prompt": "a cat", "seed": 1, **FEW, "steps": 4}
    unit: dict[str, Any] = {"image": drawing(), "module": "tile_colorfix+sharp", "threshold_a": 3, "threshold_b": 0.5}

    def distance(result: Any) -> float:
        parts = np.asarray(result.images[0].convert("RGB"), float) - np.asarray(drawing(), float)
        return float(np.abs(parts.reshape(4, 16, 4, 16, 3).mean((1, 3))).mean())

    alone = api.txt2img(**given, controlnet_units=[ControlNetUnit(**unit)])
    canny = ControlNetUnit(image=drawing(), module="canny", model="canny")
    free = api.txt2img(**given, controlnet_units=[canny])
    units = [ControlNetUnit(**unit, model="palette"), canny]
    both = api.txt2img(**given, controlnet_units=units)
    assert distance(alone) < distance(free) - 10
    assert len(both.images) == 3 and np.array_equal(np.asarray(both.images[1]), np.asarray(drawing()))
    text = both.info["infotexts"][0]
    assert 'ControlNet 0: "Module: tile_colorfix+sharp, Model: palette' in text and "ControlNet 2" not in text
    assert "Threshold A: 3.0, Threshold B: 0.5" in text and 'ControlNet 1: "Module: canny' in text
    assert 'ControlNet 0: "Module: tile_colorfix+sharp, Model: None' in alone.info["infotexts"][0]
    assert both.info["warnings"] == alone.info["warnings"] == []


def test_pictures_from_pictures(api: WebUIApi) -> None:
    changed = api.img2img(images=[drawing()], prompt="x", seed=3, denoising_strength=0.6, **FEW)
    assert changed.image.size == (SIZE, SIZE)
    assert changed.parameters["init_images"] is None
    assert "Denoising strength: 0.6" in changed.info["infotexts"][0]
    mask = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(mask).rectangle([16, 16, 47, 47], fill=255)
    inpainted = api.img2img(
        images=[drawing()],
        mask_image=mask,
        prompt="x",
        seed=3,
        inpainting_fill=1,
        inpaint_full_res=False,
        mask_blur=0,
        **FEW,
    )
    kept = np.asarray(inpainted.image.convert("RGB"), np.int16)[:8] - np.asarray(drawing(), np.int16)[:8]
    assert np.abs(kept).max() <= 2


def test_a_hires_pass_enlarges(api: WebUIApi) -> None:
    result = api.txt2img(prompt="a cat", seed=7, enable_hr=True, hr_scale=2, denoising_strength=0.5, **FEW)
    assert result.image.size == (2 * SIZE, 2 * SIZE)
    text = result.info["infotexts"][0]
    assert "Hires upscale: 2" in text and f"Size: {SIZE}x{SIZE}" in text and "Hires upscaler: Latent" in text


def test_pictures_are_made_larger_and_keep_their_text(api: WebUIApi) -> None:
    larger = api.extra_single_image(image=drawing(), upscaler_1="Lanczos", upscaling_resize=2)
    assert larger.image.size == (2 * SIZE, 2 * SIZE)
    assert "Postprocess upscaler: Lanczos" in larger.info
    assert np.array_equal(np.asarray(larger.image), np.asarray(drawing().resize((128, 128), Image.Resampling.LANCZOS)))
    several = api.extra_batch_images(images=[drawing()] * 2, upscaler_1="Nearest", upscaling_resize=2)
    assert [image.size for image in several.images] == [(128, 128)] * 2
    wide = {"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 60, "upscaler_1": "Nearest"}
    assert api.extra_single_image(image=drawing(), **wide).image.size == (100, 60)
    drawn = api.txt2img(prompt="a cat", seed=9, **FEW)
    blended = api.extra_single_image(
        image=drawn.image, upscaler_1="Nearest", upscaler_2="Lanczos", extras_upscaler_2_visibility=0.5
    ).image
    assert blended.info["parameters"] == drawn.info["infotexts"][0]
    assert blended.info["postprocessing"].endswith("Postprocess upscaler: Nearest, Postprocess upscaler 2: Lanczos")


def test_a_picture_is_asked_how_it_was_made(api: WebUIApi) -> None:
    drawn = api.txt2img(prompt="a cat, (b:1.2)", seed=9, **FEW)
    said = api.png_info(drawn.image)
    assert said.info == drawn.info["infotexts"][0]
    assert said.json["parameters"]["Seed"] == "9"


def test_settings_are_kept_for_who_set_them(server: Server, api: WebUIApi) -> None:
    api.set_options({"CLIP_stop_at_last_layers": 2})
    assert api.get_options()["CLIP_stop_at_last_layers"] == 2
    bert = requests.get(f"{server.url}/sdapi/v1/options", auth=("bert", "another-password"), timeout=60)
    assert bert.json()["CLIP_stop_at_last_layers"] == 1
    assert "Clip skip: 2" in api.txt2img(prompt="x", seed=1, **FEW).info["infotexts"][0]
    api.set_options({"CLIP_stop_at_last_layers": 1})
    with_override = api.txt2img(prompt="x", seed=1, override_settings={"CLIP_stop_at_last_layers": 2}, **FEW)
    assert "Clip skip: 2" in with_override.info["infotexts"][0]
    assert "Clip skip" not in api.txt2img(prompt="x", seed=1, **FEW).info["infotexts"][0]


def test_models_are_chosen_by_their_titles(api: WebUIApi) -> None:
    assert api.util_get_current_model() in [model["title"] for model in api.get_sd_models()]
    api.util_set_model("diorama")
    api.util_wait_for_ready(0.1)


def test_models_are_let_go_and_opened_again(server: Server, api: WebUIApi) -> None:
    first = api.txt2img(prompt="a cat", seed=5, **FEW).image.tobytes()
    assert server.post("/sdapi/v1/unload-checkpoint") == server.post("/sdapi/v1/reload-checkpoint") == {}
    assert api.txt2img(prompt="a cat", seed=5, **FEW).image.tobytes() == first


def test_a_vae_is_chosen_by_its_name_and_the_answer_says_so(api: WebUIApi) -> None:
    (vae,) = api.get_sd_vae()
    given = {"prompt": "a castle at night", "seed": 5, **FEW}
    own = api.txt2img(**given)
    bright = api.txt2img(**given, override_settings={"sd_vae": vae["model_name"]})
    assert np.asarray(bright.image).mean() > np.asarray(own.image).mean() + 20
    assert (own.info["sd_vae_name"], bright.info["sd_vae_name"]) == (None, "bright.safetensors")
    said = f"VAE hash: {bright.info['sd_vae_hash']}, VAE: bright.safetensors"
    assert len(bright.info["sd_vae_hash"]) == 10 and said in bright.info["infotexts"][0]
    other = api.txt2img(**given, override_settings={"sd_vae": "gone.pt"})
    assert other.image.tobytes() == own.image.tobytes()
    assert any("gone.pt" in warning for warning in other.info["warnings"])


def test_every_list_answers(api: WebUIApi, server: Server) -> None:
    lists = (
        api.get_samplers, api.get_schedulers, api.get_upscalers, api.get_latent_upscale_modes, api.get_sd_models,
    )  # fmt: skip
    assert all(ask() for ask in lists)
    empty = api.get_hypernetworks, api.get_face_restorers, api.get_realesrgan_models
    assert all(ask() == [] for ask in empty)
    assert [each["name"] for each in api.get_loras()] == list(shipped("lora")["lora"])
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_memory()["ram"]["total"] > 0
    assert "controlnet m2m" in api.get_scripts()["txt2img"]
    write_bright_vae(server.models / "brighter.safetensors")  # what is there now is in the lists at once
    assert api.refresh_checkpoints() is None
    assert "brighter.safetensors" in [vae["model_name"] for vae in api.get_sd_vae()]
    assert api.controlnet_model_list()[0] == "None" and "canny" in api.controlnet_module_list()
    assert len(api.controlnet_detect(images=[drawing()], module="canny").images) == 1


# ---- what other clients send


def test_every_route_wants_to_know_who_asks(server: Server) -> None:
    from disegno.serving.a1111.reference import routes

    assert len(routes()) > 40
    for method, path, _ in routes():
        assert server.ask(method, path, auth=None).status_code == 401, path


def test_a_failing_control_is_an_error_and_no_picture(server: Server) -> None:
    def answer(unit: dict[str, Any]) -> Any:
        return server.ask("POST", "/sdapi/v1/txt2img", {**FEW, "alwayson_scripts": {"controlnet": {"args": [unit]}}})

    for unit, words in (
        ({"enabled": True, "model": "canny", "module": "canny"}, "no image"),
        ({"image": b64(drawing()), "model": "canny", "module": "depth_midas"}, "needs weights"),
        ({"image": b64(drawing()), "model": "nope", "module": "canny"}, "nope"),
        ({"image": " HTTP://127.0.0.1:9/x.png", "model": "canny", "module": "canny"}, "address"),
        (
            {"image": base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 64).decode(), "model": "canny", "module": "canny"},
            "picture",
        ),
    ):
        told = answer(unit)
        assert told.status_code == 422 and words in told.text, told.text


def test_errors_look_as_clients_expect(server: Server) -> None:
    wrong = server.ask("POST", "/sdapi/v1/txt2img", {"width": "abc"})
    assert wrong.status_code == 422 and wrong.json()["detail"][0]["loc"] == ["body", "width"]
    missing = server.ask("POST", "/sdapi/v1/img2img", {"prompt": "x"})
    assert missing.status_code == 404 and missing.json()["detail"] == "Init image not found"
    undecodable = server.ask("POST", "/sdapi/v1/img2img", {"init_images": ["@@@"]})
    assert undecodable.status_code == 500 and {"error", "detail", "body", "errors"} <= undecodable.json().keys()
    assert server.ask("POST", "/sdapi/v1/nope").json()["detail"] == "Not Found"
    assert server.ask("POST", "/sdapi/v1/options", {"outdir_samples": "/etc"}).status_code == 422
    assert server.ask("POST", "/sdapi/v1/interrogate", {"image": b64(drawing())}).status_code == 404


def test_unknown_keys_are_reported_in_the_info(server: Server) -> None:
    body = server.post("/sdapi/v1/txt2img", {**FEW, "prompt": "x", "distilled_cfg_scal": 3.5, "restore_faces": True})
    warnings = json.loads(body["info"])["warnings"]
    assert any("Did you mean distilled_cfg_scale?" in warning for warning in warnings)
    assert any("restore_faces" in warning for warning in warnings)
    assert json.loads(body["info"])["sampler_name"] == "Euler"


def test_a_plot_is_one_sheet(server: Server) -> None:
    args = [4, "1,2", [], 0, "", [], 0, "", [], True, True]
    body = server.post("/sdapi/v1/txt2img", {**FEW, "prompt": "x", "script_name": "X/Y/Z plot", "script_args": args})
    sheet, *lone = [opened(image) for image in body["images"]]
    assert len(lone) == 2
    assert sheet.width == 2 * SIZE and sheet.height > SIZE


SCRIPTED: dict[str, Any] = {**FEW, "prompt": "a cat", "seed": 5, "denoising_strength": 0.8}


def _scripted(server: Server, form: str, name: str, args: list[Any], **given: Any) -> tuple[list[Any], Any]:
    body = {**SCRIPTED, "script_name": name, "script_args": args, **given}
    answer = server.post(
        f"/sdapi/v1/{form}", {**({"init_images": [b64(drawing())]} if form == "img2img" else {}), **body}
    )
    return [opened(image) for image in answer["images"]], json.loads(answer["info"])


def test_loopback_changes_its_own_pictures(server: Server) -> None:
    """As if each were sent back by hand; a row of them stands first."""
    images, info = _scripted(server, "img2img", "Loopback", [2, 0.5, "Linear", "None"])
    row, first, second = images
    assert row.size == (2 * SIZE, SIZE) and info["index_of_first_image"] == 1
    assert (info["all_seeds"], len(info["infotexts"])) == ([5, 6], 3)
    for text, strength in ((info["infotexts"][1], "0.8"), (info["infotexts"][2], "0.5")):
        assert f"Denoising strength: {strength}," in text
        assert "Final denoising strength: 0.5, Denoising curve: Linear" in text
    assert first.info["parameters"] == info["infotexts"][1]
    again = {**SCRIPTED, "init_images": [b64(first)], "seed": 6, "denoising_strength": 0.5}
    by_hand = opened(server.post("/sdapi/v1/img2img", again)["images"][0])
    assert by_hand.tobytes() == second.tobytes() != first.tobytes()
    lasts, _ = _scripted(server, "img2img", "Loopback", [2], n_iter=2)
    assert len(lasts) == 3 and lasts[1].tobytes() == second.tobytes()


def test_sd_upscale_draws_over_the_enlarged_picture(server: Server) -> None:
    images, info = _scripted(server, "img2img", "SD upscale", ["", 16, "Lanczos", 2], denoising_strength=0.3)
    (image,) = images
    assert image.size == (2 * SIZE, 2 * SIZE)
    text = info["infotexts"][0]
    assert "Denoising strength: 0.3, " in text and "SD upscale overlap: 16, SD upscale upscaler: Lanczos" in text
    assert f"Size: {SIZE}x{SIZE}, " in text and "Hires" not in text
    large = np.asarray(drawing().resize(image.size, Image.Resampling.LANCZOS), float)
    change = np.abs(np.asarray(image.convert("RGB"), float) - large).mean()
    assert 1 < change < 40  # it is drawn over, and is the same picture
    assert info["extra_generation_params"]["SD upscale overlap"] == 16


def test_ultimate_sd_upscale_draws_over_the_enlarged_picture_or_only_enlarges_it(server: Server) -> None:
    def larger(redraw: int, *target: Any) -> tuple[Image.Image, str]:
        args = ["", 64, 0, 8, 16, 64, 0.35, 16, "Lanczos", True, redraw, False, 4, 0, *target]
        images, info = _scripted(server, "img2img", "Ultimate SD upscale", args, denoising_strength=0.3)
        (image,) = images
        return image.convert("RGB"), info["infotexts"][0]

    image, text = larger(0, 2, 2048, 2048, 2)
    assert image.size == (2 * SIZE, 2 * SIZE) and f"Size: {2 * SIZE}x{2 * SIZE}, " in text and "Hires" not in text
    assert "Denoising strength: 0.3, " in text and "Ultimate SD upscale padding: 16" in text
    plain, _ = larger(2, 2, 2048, 2048, 2)
    large = np.asarray(drawing().resize(image.size, Image.Resampling.LANCZOS), float)
    drawn, kept = (np.abs(np.asarray(each, float) - large).mean() for each in (image, plain))
    assert 1 < drawn < 40 and kept < drawn
    assert larger(0, 1, 192, 96, 2)[0].size == (192, 96)  # of another shape: covered, and cut


def test_forges_scripts_act_and_are_in_the_text(server: Server) -> None:
    def text(**scripts: Any) -> str:
        body = {
            **FEW,
            "prompt": "a cat",
            "seed": 3,
            "alwayson_scripts": {name: {"args": args} for name, args in scripts.items()},
        }
        return json.loads(server.post("/sdapi/v1/txt2img", body)["info"])["infotexts"][0]

    assert "PAG Scale: 2.5, PAG End: 0.25" in text(**{"PerturbedAttentionGuidance Integrated": [True, 2.5, 0, 0, 0.5]})
    assert "freeu_enabled: True, freeu_b1: 1.01" in text(**{"FreeU Integrated": [True]})
    assert "freeu" not in text(**{"FreeU Integrated": [False], "Kohya HRFix Integrated": [False, 3]})
    listed = {row["name"]: row for row in server.get("/sdapi/v1/script-info")}
    assert listed["multidiffusion integrated"]["is_alwayson"] and len(listed["multidiffusion integrated"]["args"]) == 6
    assert server.get("/queue/status")["queue_size"] == 0


def test_outpainting_keeps_the_picture_and_draws_around_it(server: Server) -> None:
    images, info = _scripted(server, "img2img", "Poor man's outpainting", [64, 2, "fill", ["right"]])
    (image,) = images
    assert image.size == (2 * SIZE, SIZE) and "Mask blur: 4, Masked content: fill" in info["infotexts"][0]
    kept = np.asarray(image.convert("RGB"), float)[:, : SIZE - 24] - np.asarray(drawing(), float)[:, : SIZE - 24]
    assert np.abs(kept).max() <= 2


def test_prompts_from_a_text_are_a_picture_each(server: Server) -> None:
    lines = "a dog\n--prompt a fish --steps 3 --seed 9"
    images, info = _scripted(server, "txt2img", "Prompts from file or textbox", [True, False, "end", lines], prompt="")
    assert len(images) == 2 and info["all_prompts"] == ["a dog", "a fish"] and info["all_seeds"] == [5, 9]
    assert "a fish\nSteps: 3, " in info["infotexts"][1]
    listed = {row["name"]: row for row in server.get("/sdapi/v1/script-info")}
    assert listed["loopback"]["args"][0]["label"] == "Loops"
    assert "loopback" not in server.get("/sdapi/v1/scripts")["txt2img"]


def test_styles_and_formats(server: Server) -> None:
    assert server.get("/sdapi/v1/prompt-styles") == [
        {"name": "ink", "prompt": "{prompt}, an ink drawing", "negative_prompt": "photo"}
    ]
    asked = {**FEW, "prompt": "a cat", "styles": ["ink"], "override_settings": {"samples_format": "jpg"}}
    body = server.post("/sdapi/v1/txt2img", asked)
    assert opened(body["images"][0]).format == "JPEG"
    info = json.loads(body["info"])
    assert info["styles"] == ["ink"]
    assert "a cat, an ink drawing\nNegative prompt: photo" in info["infotexts"][0]
    assert server.ask("POST", "/sdapi/v1/txt2img", {**FEW, "styles": ["inc"]}).status_code == 422


def test_poses_are_drawn(server: Server) -> None:
    points = [value for x, y in ((32, 8), (32, 24), (16, 24)) for value in (x, y, 1)]
    pose = {"people": [{"pose_keypoints_2d": points}], "canvas_width": SIZE, "canvas_height": SIZE}
    body = server.post("/controlnet/render_openpose_json", [pose])
    assert body["info"] == "Success" and opened(body["images"][0]).getpixel((32, 8)) == (255, 0, 0)


def test_progress_is_told_for_the_whole_and_for_each_task_and_interrupt_ends_what_runs(server: Server) -> None:
    asked = {"prompt": "x", "steps": 150, "width": 512, "height": 512, "n_iter": 4, "force_task_id": "task(mine)"}
    with ThreadPoolExecutor() as pool:
        drawing = pool.submit(server.post, "/sdapi/v1/txt2img", asked)
        until = time.monotonic() + 60
        while (whole := server.get("/sdapi/v1/progress"))["current_image"] is None:
            assert time.monotonic() < until, whole
            time.sleep(0.02)
        assert 0 < whole["progress"] < 1 and whole["state"]["job_count"] == 4
        mine = server.post("/internal/progress", {"id_task": "task(mine)"})
        assert mine["active"] and 0 < mine["progress"] < 1
        assert mine["live_preview"].startswith("data:image/")
        assert opened(whole["current_image"]).size == (512, 512)
        assert server.post("/sdapi/v1/interrupt") == {}
        body = drawing.result(timeout=60)
    info = json.loads(body["info"])
    assert len(body["images"]) == len(info["infotexts"]) == 1  # what was drawn so far; the other three were not begun
    assert server.post("/internal/progress", {"id_task": "task(mine)"})["completed"]
    idle = server.get("/sdapi/v1/progress")
    assert (idle["progress"], idle["state"]["job_count"]) == (0.0, 0)
