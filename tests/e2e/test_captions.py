"""What pictures show, in words: from the command line for a data set, as a job, and as A1111's clients ask."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from playwright.sync_api import Browser, expect

from disegno import Settings, Studio
from disegno.cli.main import main
from disegno.core.errors import UnknownName
from disegno.engine.pictures import read_picture
from kit.captioner import write_captioner
from kit.page import visit
from kit.server import Server, start

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_captioner(root / "BLIP" / "blip-tiny")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, colour in enumerate(("red", "navy", "white")):
        Image.radial_gradient("L").convert("RGB").resize((60, 40)).point(lambda v, n=n: v * n // 2).save(
            folder / f"{colour}.png"
        )
    (folder / "navy.txt").write_text("a car of one's own\n", "utf-8")
    return folder


@pytest.fixture
def run(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(models))
    monkeypatch.setenv("DISEGNO_CACHE_DIR", str(tmp_path / "cache"))
    return CliRunner()


def _words(models: Path, tmp_path: Path, picture: Path, beginning: str = "") -> str:
    studio = Studio(Settings(model_dirs=(models,), cache_dir=tmp_path / "own"))
    return studio.captioner("blip-tiny").caption(read_picture(str(picture)), beginning)


def test_captions_are_written_beside_pictures_that_have_none(
    run: CliRunner, models: Path, photos: Path, tmp_path: Path
) -> None:
    written = run.invoke(main, ["caption", str(photos), "--write", "--beginning", "a photo of"])
    assert written.exit_code == 0 and "2 captions written, 0 pictures left out" in written.output, written.output
    assert (photos / "navy.txt").read_text("utf-8") == "a car of one's own\n"
    assert (photos / "red.txt").read_text("utf-8") == (
        _words(models, tmp_path, photos / "red.png", "a photo of") + "\n"
    )
    again = run.invoke(main, ["caption", str(photos), "--write"])
    assert again.exit_code == 0 and "Every picture has its caption" in again.output
    assert run.invoke(main, ["caption", str(photos), "--write", "--overwrite"]).exit_code == 0
    assert (photos / "navy.txt").read_text("utf-8") == _words(models, tmp_path, photos / "navy.png") + "\n"
    pairs = tmp_path / "pairs"
    built = run.invoke(main, ["dataset", "build", str(photos), str(pairs), "--annotator", "canny", "--workers", "1"])
    assert built.exit_code == 0, built.output
    lines = (pairs / "prompt.json").read_text("utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [
        (photos / f"{name}.txt").read_text("utf-8").strip() for name in ("navy", "red", "white")
    ]


def test_one_picture_is_said_and_what_is_no_picture_is_named(
    run: CliRunner, models: Path, photos: Path, tmp_path: Path
) -> None:
    one = run.invoke(main, ["caption", str(photos / "red.png")])
    assert one.exit_code == 0 and one.output == _words(models, tmp_path, photos / "red.png") + "\n"
    (photos / "bad.png").write_bytes(b"no picture")
    some = run.invoke(main, ["caption", str(photos)])
    assert some.exit_code == 1 and "bad.png" in some.output and some.output.count("photos/") >= 4
    alone = run.invoke(main, ["caption", str(photos / "bad.png")])
    assert alone.exit_code == 2
    for words, message in (
        ([str(tmp_path / "none.png")], "is not there"),
        ([str(photos), "--overwrite"], "give both, or neither"),
        ([str(photos), "--captioner", "other"], "no captioner named 'other'"),
    ):
        refused = run.invoke(main, ["caption", *words])
        assert refused.exit_code == 2 and message in refused.output, refused.output


def test_without_a_captioner_it_says_where_to_put_one(tmp_path: Path) -> None:
    studio = Studio(Settings(model_dirs=(tmp_path,), cache_dir=tmp_path / "cache"))
    with pytest.raises(UnknownName, match="blip-image-captioning-base"):
        studio.captioner()


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    running = start(folder, DISEGNO_MODEL_DIRS=str(models), DISEGNO_CACHE_DIR=str(folder / "cache"))
    yield running.wait_ready()
    running.stop()


def test_jobs_and_a1111s_clients_are_told_the_same(server: Server, models: Path, photos: Path, tmp_path: Path) -> None:
    data = (photos / "red.png").read_bytes()
    text = base64.b64encode(data).decode()
    wanted = _words(models, tmp_path, photos / "red.png")
    job = server.wait(server.submit("caption", {"image": f"data:image/png;base64,{text}"})["id"])
    assert job["state"] == "done" and job["result"]["facts"] == {"caption": wanted, "captioner": "blip-tiny"}
    for body in ({"image": text}, {"image": text, "model": "clip"}):
        assert server.ask("POST", "/sdapi/v1/interrogate", body).json() == {"caption": wanted}
    for body, detail in (({"image": text, "model": "deepdanbooru"}, "Model"), ({"model": "clip"}, "Image")):
        refused = server.ask("POST", "/sdapi/v1/interrogate", body)
        assert refused.status_code == 404 and refused.json()["detail"] == f"{detail} not found"
    assert any(row["kind"] == "captioner" for row in server.get("/v1/files"))
    wrong = server.wait(server.submit("caption", {"image": f"data:image/png;base64,{text}", "captioner": "x"})["id"])
    assert wrong["state"] == "failed" and "no captioner named 'x'" in wrong["failure"]["message"]


def test_the_page_describes_the_picture_that_is_changed(
    page_browser: Browser, server: Server, models: Path, photos: Path, tmp_path: Path
) -> None:
    wanted = _words(models, tmp_path, photos / "red.png")
    with visit(page_browser, server.url) as there:
        tab = there.tab("pictures")
        prompt = tab.get_by_label("Prompt", exact=True)
        prompt.fill("a castle")
        there.upload(tab.get_by_role("button", name="Upload"), photos / "red.png")
        tab.get_by_role("button", name="Describe").click()
        expect(prompt).to_have_value(wanted, timeout=60_000)
        there.page.locator(".toast").get_by_role("button", name="Undo").click()
        expect(prompt).to_have_value("a castle")
        assert not [job for job in server.get("/v1/jobs")["jobs"] if job["state"] == "running"]


def test_loopback_says_what_each_picture_shows(server: Server, models: Path, photos: Path, tmp_path: Path) -> None:
    body: dict[str, Any] = {
        "init_images": [base64.b64encode((photos / "red.png").read_bytes()).decode()], "prompt": "a house", "seed": 1,
        "steps": 2, "width": 128, "height": 128, "denoising_strength": 0.5, "sampler_name": "Euler",
        "script_name": "Loopback", "script_args": [2, 0.5, "Linear", "CLIP"],
    }  # fmt: skip
    answer = server.ask("POST", "/sdapi/v1/img2img", body)
    assert answer.status_code == 200, answer.text
    images, texts = answer.json()["images"][-2:], json.loads(answer.json()["info"])["infotexts"][-2:]
    first = tmp_path / "first.png"
    first.write_bytes(base64.b64decode(images[0]))
    for text, picture in zip(texts, (photos / "red.png", first), strict=True):
        assert text.startswith(f"a house, {_words(models, tmp_path, picture)}"), text
