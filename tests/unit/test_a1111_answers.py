"""What A1111's clients get back: files, the answer and its info, progress, poses."""

import base64
import io
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disegno.core.request import InitImage, Request
from disegno.serving.a1111.answer import Drawn, Model, answer
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errors import Fault, WireError, error_body
from disegno.serving.a1111.files import as_format, open_png, png_of, png_with_text
from disegno.serving.a1111.generation import Order, translate
from disegno.serving.a1111.house import House, Named
from disegno.serving.a1111.images import read_image
from disegno.serving.a1111.poses import draw_pose, read_pose
from disegno.serving.a1111.progress import Task, estimation, of_task, overall, pending
from disegno.serving.a1111.routes_generate import following, model_of
from disegno.serving.words import Catalogue

pytestmark = pytest.mark.unit


def picture(colour: str = "red", size: int = 8) -> bytes:
    return png_of(Image.new("RGB", (size, size), colour))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ---- files


@pytest.mark.parametrize("text", ["a cat", "ünï", "日本 🙂", ""])
def test_a_png_gets_its_text_and_keeps_its_pixels(text: str) -> None:
    first = png_with_text(picture(), "old")
    png = png_with_text(first, text)
    with Image.open(io.BytesIO(png)) as opened:
        opened.load()
        assert opened.info == {"parameters": text}
        assert opened.getpixel((0, 0)) == (255, 0, 0)
    assert len([chunk for chunk in (b"tEXt", b"iTXt") if chunk in png]) == 1


@pytest.mark.parametrize("kind", ["jpg", "jpeg", "webp"])
@pytest.mark.parametrize("text", ["a cat", "日本 🙂", None])
def test_other_formats_carry_the_text_as_exif(kind: str, text: str | None) -> None:
    with Image.open(io.BytesIO(as_format(picture(), text, kind, lossless=True))) as opened:
        comment = opened.getexif().get_ifd(0x8769).get(0x9286)
        assert opened.format == ("WEBP" if kind == "webp" else "JPEG")
        assert comment == (None if text is None else b"UNICODE\0" + text.encode("utf-16-be"))


def test_what_a_format_cannot_hold_stays_a_png() -> None:
    long, wide = "a" * 40000, png_of(Image.new("RGB", (16384, 1)))
    for png, text, kind in ((picture(), long, "jpg"), (wide, None, "webp")):
        with Image.open(io.BytesIO(as_format(png, text, kind))) as opened:
            opened.load()
            assert opened.format == "PNG" and opened.info.get("parameters") == text


def test_a_picture_may_be_a_data_uri_or_bare_base64_on_many_lines() -> None:
    data = b64(picture())
    expected = f"data:image/png;base64,{data}"
    lines = "\n".join(data[i : i + 20] for i in range(0, len(data), 20))
    for text in (data, expected, lines, data.rstrip("="), f"data:image/jpeg;base64,{data}"):
        assert read_image(text, ()) == expected
    assert read_image("", ()) is read_image(None, ()) is None


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("x", 422),
        ("data:image/png", 422),
        ("data:image/svg+xml;base64,PHN2Zy8+", 422),
        ("file:///etc/passwd", 422),
        ("/etc/passwd", 422),
        (" gopher://127.0.0.1:1/x", 422),
        ("🙂", 422),
        ("\0", 422),
        ("@@@", 500),
    ],
)
def test_what_is_no_picture_is_refused(text: str, status: int) -> None:
    with pytest.raises(WireError) as caught:
        read_image(text, ("mask",))
    assert caught.value.status == status


def test_errors_have_the_two_shapes_that_clients_know() -> None:
    fields = error_body(WireError.of_fields(Fault(("width",), "value is not a valid integer", "type_error.integer")))
    assert fields["detail"] == [
        {"loc": ["body", "width"], "msg": "value is not a valid integer", "type": "type_error.integer"}
    ]
    assert fields["field"] == "width"
    plain = error_body(WireError("Sampler not found", 400))
    assert (plain["error"], plain["detail"], plain["body"], plain["errors"]) == (
        "HTTPException",
        "Sampler not found",
        "",
        "",
    )


# ---- answers


def house(**settings: Json) -> House:
    return House(
        models=[Named("diorama")],
        vaes=[],
        controls=[Named("canny")],
        upscalers=["Latent"],
        styles=[],
        names=lambda name, schedule: (name, schedule or "Automatic"),
        draw=lambda: 7,
        settings=settings,
    )


def order(**body: Json) -> Order:
    return translate("txt2img", {"prompt": "a cat", **body}, house())


def drawn(*colours: str, first: int = 0, maps: int = 0) -> Drawn:
    return Drawn(
        request=Request(prompt="a cat", seed=first, width=64, height=64, steps=2, sampler="Euler", cfg=7.0),
        pictures=tuple(picture(colour) for colour in colours),
        infotexts=tuple(f"a cat\nSteps: 2, Seed: {first + i}" for i in range(len(colours))),
        seeds=tuple(range(first, first + len(colours))),
        subseeds=tuple(range(len(colours))),
        maps=tuple(picture("white") for _ in range(maps)),
        prompts=("a cat",) * len(colours),
        negatives=("",) * len(colours),
        warnings=("something was cut off",),
    )


MODEL = Model("diorama", "0123456789")


def test_a_loop_keeps_the_size_of_the_one_before_it() -> None:
    before = drawn("red")
    asked = following(Request(prompt="a cat", init=InitImage(image="x")), before)
    assert (asked.width, asked.height) == (64, 64)
    assert asked.init and asked.init.image.startswith("data:image/png;base64,")


def test_a_model_that_was_taken_away_meanwhile_keeps_its_name() -> None:
    front: Any = SimpleNamespace(jobs=SimpleNamespace(catalogue=Catalogue()))
    assert model_of(front, order()) == Model("diorama")


def answered(asked: Order, *parts: Drawn) -> tuple[list[Image.Image], dict[str, Any], dict[str, Any]]:
    body: Any = answer(asked, parts, MODEL, "v1", "20260101000000")
    images = [open_png(base64.b64decode(image)) for image in body["images"]]
    return images, json.loads(body["info"]), body["parameters"]


def test_pictures_come_in_the_order_of_their_seeds_with_their_texts() -> None:
    images, info, parameters = answered(
        order(n_iter=2, batch_size=2), drawn("red", "blue"), drawn("green", "black", first=2)
    )
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255), (0, 128, 0), (0, 0, 0)]
    assert [image.info["parameters"] for image in images] == info["infotexts"]
    assert (info["all_seeds"], info["index_of_first_image"], info["seed"]) == ([0, 1, 2, 3], 0, 0)
    assert info["warnings"] == ["something was cut off"]
    assert (parameters["prompt"], parameters["width"], parameters["n_iter"]) == ("a cat", 64, 2)


def test_saved_pictures_have_a_grid_before_them() -> None:
    images, info, _ = answered(order(batch_size=2, save_images=True), drawn("red", "blue"))
    assert [image.size for image in images] == [(16, 8), (8, 8), (8, 8)]
    assert info["index_of_first_image"] == 1
    assert len(info["infotexts"]) == 3


def test_images_can_be_left_out() -> None:
    images, info, _ = answered(order(send_images=False), drawn("red"))
    assert images == []
    assert len(info["infotexts"]) == 1


def test_nothing_was_drawn_when_it_was_interrupted_at_once() -> None:
    images, info, _ = answered(order())
    assert images == []
    assert info["infotexts"] == []
    assert info["seed"] == 7


UNIT: dict[str, Json] = {"module": "canny", "model": "canny", "image": b64(picture())}


@pytest.mark.parametrize("saved", [True, False])
def test_maps_of_controls_stand_at_the_end(saved: bool) -> None:
    units: Json = [{**UNIT, "save_detected_map": saved}, UNIT]
    images, info, parameters = answered(order(alwayson_scripts={"controlnet": {"args": units}}), drawn("red", maps=2))
    assert len(images) == 2 + saved
    assert "parameters" not in images[-1].info
    assert len(info["infotexts"]) == 1
    assert parameters["alwayson_scripts"]["controlnet"]["args"][0]["module"] == "canny"


def test_the_echo_repeats_no_pictures_unless_asked() -> None:
    image = b64(png_of(Image.effect_noise((32, 32), 90).convert("RGB")))
    for keep in (True, False):
        body: dict[str, Json] = {"init_images": [image], "mask": image, "include_init_images": keep}
        asked = translate("img2img", body, house())
        _, _, parameters = answered(asked, drawn("red"))
        assert (parameters["init_images"], parameters["mask"]) == (([image], image) if keep else (None, None))


def test_formats_and_texts_follow_the_settings() -> None:
    asked = order(override_settings={"samples_format": "jpg", "enable_pnginfo": False})
    body: Any = answer(asked, [drawn("red")], MODEL, "v1", "")
    with Image.open(io.BytesIO(base64.b64decode(body["images"][0]))) as opened:
        assert opened.format == "JPEG"
        assert not opened.getexif()


def test_a_plot_is_one_labelled_sheet() -> None:
    asked = order(script_name="X/Y/Z plot", script_args=[4, "10,20", [], 0, "", [], 0, "", [], True])
    images, info, _ = answered(asked, drawn("red"), drawn("blue"))
    assert len(images) == 1
    assert images[0].getpixel((images[0].width - 1, images[0].height - 1)) == (0, 0, 255)
    assert len(info["infotexts"]) == 1
    assert asked.plot is not None
    lone = replace(asked, plot=replace(asked.plot, lone_images=True))
    images, info, _ = answered(lone, drawn("red"), drawn("blue"))
    assert len(images) == len(info["infotexts"]) == 3
    assert info["index_of_first_image"] == 1


# ---- progress

RUNNING = Task(
    "a", "scripts_txt2img", "running", 4, 1, 5, 10, started=100.0, preview="data:image/png;base64,AAAA", previews=3
)
WAITING = Task("b", "scripts_txt2img", "queued")


def test_progress_is_that_of_the_whole_order() -> None:
    told: Any = overall(RUNNING, now=110.0)
    assert told["progress"] == pytest.approx(0.01 + 1 / 4 + 5 / 40)
    assert told["eta_relative"] == pytest.approx(10 / told["progress"] - 10)
    assert told["current_image"] == "AAAA"
    assert told["state"]["job_count"] == 4
    assert overall(RUNNING, 110.0, with_image=False)["current_image"] is None


def test_nothing_runs() -> None:
    told: Any = overall(None, now=110.0)
    assert (told["progress"], told["eta_relative"], told["current_image"], told["textinfo"]) == (0.0, 0.0, None, None)
    assert (told["state"]["job"], told["state"]["job_count"]) == ("", 0)


def test_each_task_has_its_own_progress() -> None:
    tasks = [RUNNING, WAITING, replace(WAITING, id="c"), replace(WAITING, id="d", state="completed")]
    running = of_task(tasks, "a", 2, True, 110.0)
    assert (running["active"], running["live_preview"], running["id_live_preview"]) == (True, RUNNING.preview, 3)
    assert of_task(tasks, "a", 3, True, 110.0)["live_preview"] is None
    assert of_task(tasks, "c", -1, True, 110.0)["textinfo"] == "In queue: 2/2"
    assert of_task(tasks, "d", -1, True, 110.0)["completed"] is True
    assert of_task(tasks, "x", -1, True, 110.0)["textinfo"] == "Waiting..."
    assert pending(tasks) == {"size": 2, "tasks": ["b", "c"]}
    assert estimation(tasks) == {  # gradio's: plugins ask it before anything else
        "msg": "estimation", "rank": None, "queue_size": 2, "avg_event_process_time": None,
        "avg_event_concurrent_process_time": None, "rank_eta": None, "queue_eta": 0,
    }  # fmt: skip


# ---- poses


def test_a_pose_is_drawn_at_its_points() -> None:
    at = ((32, 8), (32, 24), (16, 24))
    body: list[Json] = [value for x, y in at for value in (x, y, 1.0)]
    shares: list[Json] = [value for x, y in at for value in (x / 64, y / 64, 1.0)]
    drawings = [
        draw_pose(read_pose({"people": [{"pose_keypoints_2d": points}], "canvas_width": 64, "canvas_height": 64}, ()))
        for points in (body, shares)
    ]
    assert drawings[0].shape == (64, 64, 3)
    assert np.array_equal(drawings[0], drawings[1])
    assert tuple(drawings[0][8, 32]) == (255, 0, 0)  # the nose
    assert drawings[0][24, 24].any()  # between neck and shoulder
    assert not drawings[0][60].any()


SMALL = {"canvas_width": 9, "canvas_height": 9}


@pytest.mark.parametrize(
    "pose",
    [
        5,
        {},
        {**SMALL, "canvas_width": 0},
        {**SMALL, "canvas_width": 10**9},
        {**SMALL, "people": 5},
        {**SMALL, "people": [5]},
        {**SMALL, "people": [{}] * 101},
    ],
)
def test_what_is_no_pose_is_refused(pose: Any) -> None:
    with pytest.raises(WireError):
        read_pose(pose, ())
