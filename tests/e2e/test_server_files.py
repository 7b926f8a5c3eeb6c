"""What a server does with files: it verifies and gives away those of the library, takes data sets in, examines them,
and says what a training will take; and the queue is put in order."""

import hashlib
import io
import json
import shutil
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.numpy import save_file

from disegno.backbones import miniature
from kit.hub import Hub, lora_file
from kit.pairs import CAPTION, views
from kit.server import Server

pytestmark = pytest.mark.e2e

SIZE = 64
TEACH: dict[str, Any] = {
    "name": "sent-lines", "data": ["sent"], "model": "mini", "rank": 4, "width": SIZE, "height": SIZE, "steps": 100_000,
    "validate_every": 0, "save_every": 1, "holdout": 2, "batch": 1,
}  # fmt: skip


def _done(server: Server, kind: str, request: dict[str, Any]) -> Any:
    job = server.wait(server.submit(kind, request)["id"])
    assert job["state"] == "done", job
    return job


def _failed(server: Server, kind: str, request: dict[str, Any]) -> tuple[str, str]:
    job = server.wait(server.submit(kind, request)["id"])
    assert job["state"] == "failed", job
    server.ask("DELETE", f"/v1/jobs/{job['id']}")  # the page of the same server would show it to other tests
    return job["failure"]["code"], job["failure"]["message"]


def _content(server: Server, job: Any, role: str) -> tuple[str, bytes]:
    (file,) = [file for file in job["result"]["files"] if file["role"] == role]
    return file["name"], server.ask("GET", file["url"]).content


def _send(server: Server, content: bytes, part: int = 20_000) -> str:
    upload = server.ask("POST", "/v1/uploads", {"num_bytes": len(content)}).json()
    for at in range(0, len(content), part):
        answer = server.session.put(
            f"{server.url}/v1/uploads/{upload['id']}?at={at}",
            data=content[at : at + part],
            headers={"Content-Type": "application/octet-stream"},
        )
        assert answer.ok, answer.text
    return str(upload["id"])


def _pairs() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for i, view in enumerate(views(10, SIZE)):
            for folder, picture in (("image", view), ("condition", view.convert("L").convert("RGB"))):
                png = io.BytesIO()
                picture.save(png, "PNG")
                out.writestr(f"mine/{folder}/{i}.png", png.getvalue())
            out.writestr(f"mine/image/{i}.txt", CAPTION)
        out.writestr("mine/condition/broken.png", b"no picture")
        out.writestr("mine/image/broken.png", b"no picture")
        out.writestr("mine/image/broken.txt", CAPTION)
        out.writestr("../../evil.png", b"no picture")
    return buffer.getvalue()


# ---- what is fetched


def test_a_model_is_fetched_by_address(page_server: Server, page_folder: Path, page_hub: tuple[Hub, str]) -> None:
    hub, address = page_hub
    assert page_server.get("/v1/downloads") == [address.removeprefix("http://")]
    hub.add("me/inks", {"wash.safetensors": lora_file(), "words.safetensors": b"<html>Please log in</html>"})
    wash = {"source": "hf:me/inks/wash.safetensors"}
    job = _done(page_server, "download", wash)
    there = page_folder / "models" / "wash.safetensors"
    assert there.read_bytes() == lora_file()
    facts = job["result"]["facts"]
    assert (facts["file"], facts["kind"], facts["family"]) == ("wash.safetensors", "lora", "sd1")
    until = time.monotonic() + 60
    while "wash" not in [row["name"] for row in page_server.get("/v1/files")]:  # told between two steps of a worker
        assert time.monotonic() < until
        time.sleep(0.1)
    assert not list((page_folder / "server" / "keep").glob("*/*"))  # nothing is left of the transfer
    code, message = _failed(page_server, "download", wash)
    assert code == "invalid_request" and "wash.safetensors is there already" in message
    assert str(page_folder) not in message
    code, message = _failed(page_server, "download", {"source": "hf:me/inks/words.safetensors"})
    assert code == "bad_model_file" and "It was not kept" in message
    code, message = _failed(page_server, "download", wash | {"name": "b.safetensors", "sha256": "0" * 64})
    assert code == "bad_model_file" and hashlib.sha256(lora_file()).hexdigest() in message
    assert not (page_folder / "models" / "b.safetensors").exists()
    there.unlink()


@pytest.mark.parametrize("source", ["https://evil.example/x.ckpt", "civitai:7", "http://127.0.0.1:1/x", "hf:"])
def test_nothing_is_fetched_from_elsewhere(page_server: Server, source: str) -> None:
    refused = page_server.ask("POST", "/v1/jobs", {"kind": "download", "request": {"source": source}})
    assert refused.status_code == (422 if source == "hf:" else 403), refused.text


def test_a_cancelled_download_goes_on_where_it_was(
    page_server: Server, page_folder: Path, page_hub: tuple[Hub, str]
) -> None:
    hub, _ = page_hub
    content = lora_file(4096)
    hub.add("me/inks", {"large.safetensors": content})
    path = "/me/inks/resolve/main/large.safetensors"
    hub.held[path] = threading.Event()
    job = page_server.submit("download", {"source": "hf:me/inks/large.safetensors"})
    until = time.monotonic() + 60
    while not ((now := page_server.get(f"/v1/jobs/{job['id']}"))["progress"] or {}).get("step"):
        assert now["state"] in ("queued", "running") and time.monotonic() < until, now
        time.sleep(0.05)
    assert now["progress"]["num_steps"] == -(-len(content) >> 20) and now["progress"]["stage"] == "fetching"
    page_server.ask("POST", f"/v1/jobs/{job['id']}/cancel")
    hub.held.pop(path).set()
    assert page_server.wait(job["id"])["state"] == "cancelled"
    assert not (page_folder / "models" / "large.safetensors").exists()
    hub.asked.clear()
    page_server.ask("POST", f"/v1/jobs/{job['id']}/resume")
    assert page_server.wait(job["id"])["state"] == "done"
    assert [int(said["range"].removeprefix("bytes=").rstrip("-")) > 0 for where, said in hub.asked if where == path]
    there = page_folder / "models" / "large.safetensors"
    assert there.read_bytes() == content
    there.unlink()


# ---- the library


def test_a_file_is_verified(page_server: Server, page_folder: Path) -> None:
    facts = _done(page_server, "verify", {"name": "minibase"})["result"]["facts"]
    (part,) = facts["parts"]
    assert part["file"] == "minibase.safetensors" and len(part["sha256"]) == 64 and part["tensors"] > 10
    (folder,) = [row for row in page_server.ask("GET", "/v1/models").json()["data"] if row["id"] == "mini"]
    assert folder["sha256"] and _done(page_server, "verify", {"name": "mini", "sha256": folder["sha256"]})
    assert _done(page_server, "verify", {"name": "canny"})["result"]["facts"]["kind"] == "control"
    code, message = _failed(page_server, "verify", {"name": "minibase", "sha256": "0" * 64})
    assert code == "bad_model_file" and part["sha256"] in message
    assert _failed(page_server, "verify", {"name": "nothing"})[0] == "unknown_name"
    refused = page_server.ask("POST", "/v1/jobs", {"kind": "verify", "request": {"name": "../x"}})
    assert refused.status_code == 422 and refused.json()["error"] == "unknown_name"


def test_a_control_is_given_away_with_its_card(page_server: Server, page_folder: Path) -> None:
    job = _done(page_server, "export", {"name": "minibase", "kind": "control"})
    name, content = _content(page_server, job, "weights")
    assert name == "minibase.safetensors" and content == (page_folder / "models" / name).read_bytes()
    name, card = _content(page_server, job, "card")
    assert name == "minibase.md" and job["result"]["files"][0]["sha256"] in card.decode()
    assert str(page_folder) not in card.decode()
    shipped = _done(page_server, "export", {"name": "canny"})
    assert _content(page_server, shipped, "weights")[0] == "control_canny.safetensors"
    assert "diorama" in _content(page_server, shipped, "card")[1].decode()


def test_a_model_is_given_away_in_another_form(page_server: Server) -> None:
    job = _done(page_server, "export", {"name": "mini", "kind": "model", "layout": "diffusers"})
    name, content = _content(page_server, job, "weights")
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        names = packed.namelist()
    assert name == "mini.zip" and "mini/model_index.json" in names and "mini/unet/config.json" in names
    control = _done(page_server, "export", {"name": "canny", "layout": "ldm", "format": "ckpt"})
    assert _content(page_server, control, "weights")[0] == "control_canny.ckpt"


def test_a_card_obeys_nobody(page_server: Server, page_folder: Path) -> None:
    import numpy as np

    evil = {"modelspec.title": "<script>x</script>|**x**\n# y", "modelspec.thumbnail": "data:image/png;base64,AAAA"}
    path = page_folder / "models" / "ink.safetensors"
    place = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    weights = {f"{place}.lora_down.weight": np.ones((2, 384), "f4"), f"{place}.lora_up.weight": np.ones((64, 2), "f4")}
    save_file(weights, path, evil)
    Image.new("RGB", (600, 300), "red").save(path.with_name("ink.preview.png"))
    page_server.ask("POST", "/v1/models/look")
    card = _content(page_server, _done(page_server, "export", {"name": "ink", "kind": "lora"}), "card")[1].decode()
    assert "<script" not in card.replace("\\<", "") and "\n# y" not in card
    (listed,) = [file for file in page_server.get("/v1/files") if file["name"] == "ink"]
    assert listed["preview"].startswith("data:image/jpeg;base64,") and listed["layout"]
    bad = dict(weights)
    bad[f"{place}.lora_up.weight"] = np.full((64, 2), np.nan, "f4")
    save_file(bad, path)
    code, message = _failed(page_server, "verify", {"name": "ink", "kind": "lora"})
    assert code == "bad_model_file" and "lora_up" in message


# ---- data sets


def test_a_data_set_is_sent_examined_and_taught_from(page_server: Server, page_folder: Path) -> None:
    upload = _send(page_server, _pairs())
    job = _done(page_server, "unpack", {"upload": upload, "name": "sent"})
    assert job["result"]["facts"]["files"] == 33 and "names that lead out" in job["result"]["warnings"][0]
    assert "sent" in page_server.get("/v1/datasets") and not (page_folder / "evil.png").exists()
    assert list((page_folder / "server" / "uploads").glob(upload)) == []
    assert _failed(page_server, "unpack", {"upload": upload, "name": "other"})[0] == "unknown_name"
    again = _send(page_server, _pairs())
    assert _failed(page_server, "unpack", {"upload": again, "name": "sent"})[0] == "invalid_request"
    assert page_server.ask("DELETE", f"/v1/uploads/{again}").status_code == 204
    report = _done(page_server, "check", {"data": "sent", "width": SIZE, "height": SIZE})
    facts = report["result"]["facts"]
    assert facts["usable"] == 10 and facts["left_out"] == 1 and facts["name"] == "sent"
    (broken,) = [kind for kind in facts["kinds"] if kind["kind"] == "broken"]
    assert broken["cost"] == "pair" and broken["count"] == 1 and "broken" in broken["some"][0]
    text = _content(page_server, report, "report")[1].decode()
    assert json.loads(text)["counts"]["broken"] == 1 and str(page_folder) not in text + json.dumps(report)


def test_a_training_is_estimated_paused_and_resumed(page_server: Server) -> None:
    if "sent" not in page_server.get("/v1/datasets"):  # the test before this one did not run
        _done(page_server, "unpack", {"upload": _send(page_server, _pairs()), "name": "sent"})
    told = _done(page_server, "estimate", {"training": TEACH})["result"]["facts"]
    assert told["fits"] and told["total"] > told["weights"] > 1 << 20
    assert told["seconds"] > 0 and told["seconds_in_all"] == pytest.approx(told["seconds"] * TEACH["steps"])
    assert "memory" in told["words"]
    job = page_server.submit("teach", TEACH)["id"]
    step = page_server.wait_step(job, 2)
    page_server.ask("POST", f"/v1/jobs/{job}/pause")
    page_server.wait_state(job, "paused")
    waiting = page_server.get(f"/v1/jobs/{job}")
    assert waiting["attempts"] == 0 and waiting["position"] is not None
    assert page_server.ask("POST", f"/v1/jobs/{job}/resume").ok
    assert page_server.wait_step(job, step) > step
    page_server.ask("POST", f"/v1/jobs/{job}/cancel")
    assert page_server.wait(job)["state"] == "cancelled"
    page_server.ask("DELETE", f"/v1/jobs/{job}")


# ---- the queue


def test_jobs_that_wait_change_places(page_server: Server) -> None:
    long = page_server.submit("generate", {"prompt": "x", "steps": 150, "batch": 8, "seed": 1})["id"]
    asked = {"prompt": "y", "model": "mini", "width": SIZE, "height": SIZE, "steps": 1}
    first, second, third = (page_server.submit("generate", asked | {"seed": n})["id"] for n in range(3))
    assert page_server.ask("POST", f"/v1/jobs/{third}/earlier").ok
    assert page_server.ask("POST", f"/v1/jobs/{first}/later").ok
    places = {job: page_server.get(f"/v1/jobs/{job}")["position"] for job in (first, second, third)}
    assert sorted(places, key=lambda job: places[job]) == [third, first, second]
    assert page_server.ask("POST", f"/v1/jobs/{third}/earlier").ok  # it is the first already
    assert page_server.ask("POST", f"/v1/jobs/{long}/later").status_code == 409
    page_server.ask("POST", f"/v1/jobs/{long}/cancel")
    ended = [page_server.wait(job)["ended"] for job in (third, first, second)]
    assert ended == sorted(ended)
    again = page_server.ask("POST", f"/v1/jobs/{first}/earlier")
    assert again.status_code == 409 and again.json()["error"] == "wrong_state"


def test_pictures_are_there_in_small(page_server: Server) -> None:
    big = {"prompt": "a castle", "steps": 1, "width": 512, "height": 256, "seed": 1}
    job = _done(page_server, "generate", big)
    (file,) = job["result"]["files"]
    answer = page_server.ask("GET", file["thumbnail"])
    assert answer.headers["Content-Type"] == "image/jpeg" and "immutable" in answer.headers["Cache-Control"]
    assert Image.open(io.BytesIO(answer.content)).size == (320, 160) and len(answer.content) < file["num_bytes"] / 4
    assert "immutable" in page_server.ask("GET", file["url"]).headers["Cache-Control"]  # as is the large one
    assert page_server.ask("GET", f"/v1/jobs/{job['id']}").headers["Cache-Control"] == "no-store"
    other = page_server.ask("GET", f"/v1/jobs/{job['id']}/thumbnails/none.png")
    assert other.status_code == 404
    page_server.ask("DELETE", f"/v1/jobs/{job['id']}")
    assert page_server.ask("GET", file["thumbnail"]).status_code == 404


# ---- what models are called


def test_a_model_of_hugging_faces_cache_is_called_as_there_at_every_door(
    page_server: Server, page_folder: Path
) -> None:
    home = page_folder / "models" / "hub" / "models--a-maker--tiny-v1.5"
    miniature.write_sd1_folder(home / "snapshots" / "451f4fe16113bff5a5d2269ed5ad43b0592e9a14", miniature.Miniature(3))
    page_server.ask("POST", "/sdapi/v1/refresh-checkpoints")
    name = "a-maker/tiny-v1.5"
    assert page_server.get(f"/v1/models/{name}")["id"] == name
    (row,) = [row for row in page_server.get("/sdapi/v1/sd-models") if "maker" in row["title"]]
    assert row["model_name"] == row["filename"] == name and row["title"].startswith(name)
    asked: dict[str, Any] = {"prompt": "a cat", "steps": 1, "width": 64, "height": 64, "seed": 1}
    asked["override_settings"] = {"sd_model_checkpoint": row["title"]}
    drawn = page_server.ask("POST", "/sdapi/v1/txt2img", asked)
    assert drawn.ok, drawn.text
    assert f"Model: {name}," in json.loads(drawn.json()["info"])["infotexts"][0]
    assert _done(page_server, "verify", {"name": name})["result"]["facts"]["kind"] == "model"
    shutil.rmtree(home)


def test_two_models_of_one_stem_are_told_apart_at_every_door(page_server: Server, page_folder: Path) -> None:
    models = page_folder / "models"
    first = miniature.write_sd1_checkpoint(models / "same.safetensors", miniature.Miniature(4))
    second = miniature.write_sd1_checkpoint(models / "more" / "same.safetensors", miniature.Miniature(5))
    page_server.ask("POST", "/sdapi/v1/refresh-checkpoints")
    names = [row["id"] for row in page_server.get("/v1/models")["data"]]
    assert {"same.safetensors", "more/same.safetensors"} <= set(names) and "same" not in names
    code, message = _failed(page_server, "generate", {"prompt": "a cat", "model": "same", "steps": 1})
    assert code == "invalid_request" and "more/same.safetensors" in message and str(page_folder) not in message
    titles = [row["title"] for row in page_server.get("/sdapi/v1/sd-models") if "same" in row["title"]]
    pictures = list[str]()
    for title in titles:
        asked: dict[str, Any] = {"prompt": "a cat", "steps": 1, "width": 64, "height": 64, "seed": 1}
        asked["override_settings"] = {"sd_model_checkpoint": title}
        pictures.append(page_server.ask("POST", "/sdapi/v1/txt2img", asked).json()["images"][0])
    assert len(set(titles)) == len(set(pictures)) == 2
    assert _failed(page_server, "verify", {"name": "same"})[0] == "invalid_request"
    first.unlink()
    second.unlink()
    page_server.ask("POST", "/sdapi/v1/refresh-checkpoints")
