"""Models by address: from a server that answers as Hugging Face's, Civitai's or any other does."""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from filelock import FileLock

from disegno.backbones import miniature
from disegno.cli.main import main
from disegno.core.errors import CorruptFile, RequestError, ResourceError
from disegno.weights.download import Remote, download, read_json
from disegno.weights.getting import get
from disegno.weights.sources import files_of_folder, find_source, home_of, host_of, known_hosts
from kit.hub import TOKEN, Hub, lora_file, serving_hub

pytestmark = pytest.mark.unit


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Hub, str]]:
    with serving_hub() as (there, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(tmp_path / "models"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield there, address


def _get(*words: str) -> Any:
    return CliRunner().invoke(main, ["models", "get", *words])


def _fetched(remote: Remote, folder: Path) -> bytes:
    with download(remote, folder, lambda *_: None, pause_seconds=0) as (part, _):
        return part.read_bytes()


@pytest.fixture(scope="module")
def lora() -> bytes:
    return lora_file()


def test_a_file_lands_in_the_place_of_its_kind_and_is_named(hub: tuple[Hub, str], lora: bytes, tmp_path: Path) -> None:
    there = hub[0]
    url = there.other
    there.files["/some/ink.safetensors"] = lora
    (tmp_path / "models/Lora").mkdir(parents=True)
    done = _get(f"{url}/some/ink.safetensors?download=true")
    path = tmp_path / "models/Lora/ink.safetensors"
    assert done.exit_code == 0 and done.stdout.startswith(f"{path}: sd1 lora"), done.output
    assert path.read_bytes() == lora and [each.name for each in (tmp_path / "models").rglob("*")] == ["Lora", path.name]
    again = _get(f"{url}/some/ink.safetensors")
    assert again.exit_code == 2 and "is there already" in again.stderr
    there.asked = []
    named = _get(f"{url}/some/ink.safetensors", "--name", "ink.safetensors")
    assert named.exit_code == 2 and "is there already" in named.stderr and not there.asked  # before it is fetched
    other = _get(f"{url}/some/ink.safetensors", "--to", str(tmp_path / "else"), "--name", "b.safetensors", "-q")
    assert other.exit_code == 0 and other.output == "" and (tmp_path / "else/b.safetensors").read_bytes() == lora


def test_what_is_no_file_of_weights_is_not_kept(hub: tuple[Hub, str], lora: bytes, tmp_path: Path) -> None:
    there = hub[0]
    url = there.other
    there.files["/page.safetensors"] = b"<!DOCTYPE html><html>Please log in</html>"
    there.files["/ink.safetensors"] = lora
    page = _get(f"{url}/page.safetensors")
    assert page.exit_code == 3 and "page.safetensors" in page.stderr and "It was not kept." in page.stderr
    wrong = _get(f"{url}/ink.safetensors", "--sha256", "0" * 64)
    assert wrong.exit_code == 3 and hashlib.sha256(lora).hexdigest() in wrong.stderr
    gone = _get(f"{url}/nothing.safetensors")
    assert gone.exit_code == 2 and "404" in gone.stderr and "address is right" in gone.stderr
    assert not [each for each in (tmp_path / "models").rglob("*") if each.suffix != ".lock"]


def test_what_breaks_off_goes_on_where_it_broke(hub: tuple[Hub, str], tmp_path: Path) -> None:
    there, url = hub
    data = bytes(range(256)) * 40_000
    there.files["/large.bin"], there.breaks_after = data, [3_000_000, 2_000_000]
    told = list[tuple[int, int]]()
    remote = Remote(f"{url}/large.bin", sha256=hashlib.sha256(data).hexdigest())
    with download(remote, tmp_path, lambda done, of: told.append((done, of)), pause_seconds=0) as (part, name):
        assert part.read_bytes() == data and name == "large.bin" and told[-1] == (len(data), len(data))
    ranges = [said.get("range") for _, said in there.asked]
    assert ranges[0] is None and ranges[1] == "bytes=3000000-" and ranges[2] == "bytes=5000000-"
    # all of it was there, and only the move was missing
    there.asked = []
    with download(remote, tmp_path, lambda *_: None, pause_seconds=0) as (part, name):
        assert part.read_bytes() == data and name == "large.bin" and len(there.asked) == 1
    # another version meanwhile: from the beginning
    there.breaks_after = [1000]
    with pytest.raises(RequestError):
        _fetched(Remote(f"{url}/other.bin"), tmp_path)
    there.files["/other.bin"] = b"a" * 5000
    with pytest.raises(CorruptFile, match="It was not kept"):
        _fetched(Remote(f"{url}/other.bin", sha256="1" * 64), tmp_path)


@pytest.mark.parametrize("endless", [False, True])
def test_what_would_fill_the_disk_is_not_fetched(
    hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endless: bool
) -> None:
    there, url = hub
    there.files["/large.bin"] = bytes(3_000_000)
    there.endless = {"/large.bin"} if endless else set()
    assert len(_fetched(Remote(f"{url}/large.bin"), tmp_path / "a")) == 3_000_000
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2_000_000))
    with pytest.raises(ResourceError, match="Free space"):
        _fetched(Remote(f"{url}/large.bin"), tmp_path / "b")


def test_a_file_is_fetched_by_one_process_at_a_time(hub: tuple[Hub, str], tmp_path: Path) -> None:
    remote = Remote(f"{hub[1]}/large.bin")
    lock = tmp_path / f".{hashlib.sha256(remote.url.encode()).hexdigest()[:24]}.lock"
    with FileLock(lock), pytest.raises(RequestError, match="is being fetched already"):
        _fetched(remote, tmp_path)


def test_a_token_goes_to_no_other_host(hub: tuple[Hub, str], lora: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    there, _ = hub
    there.add("me/gated", {"ink.safetensors": lora})
    path = "/me/gated/resolve/main/ink.safetensors"
    there.closed.add(path)
    refused = _get("hf:me/gated/ink.safetensors")
    assert refused.exit_code == 2 and "HF_TOKEN" in refused.stderr
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    there.files["/bucket"], there.away[path] = lora, f"{there.other}/bucket"
    assert _get("hf:me/gated/ink.safetensors").exit_code == 0
    asked = {where: said.get("authorization") for where, said in there.asked}
    assert asked[path] == f"Bearer {TOKEN}" and asked["/bucket"] is None


def test_a_folder_of_diffusers_is_fetched_whole_and_draws(hub: tuple[Hub, str], tmp_path: Path) -> None:
    there, _ = hub
    folder = miniature.write_sd1_folder(tmp_path / "made")
    files = {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    extra = {"README.md": b"words", "v1.ckpt": b"x" * 100, "unet/diffusion_pytorch_model.bin": b"x" * 100}
    there.add("me/mini", files | extra | {"../evil.json": b"{}", "unet/flax_model.msgpack": b"x"})
    there.breaks_after = [100]  # of the list
    done = _get("hf:me/mini")
    assert done.exit_code == 2  # what is cut off is no list
    done = _get("hf:me/mini")
    path = tmp_path / "models/mini"
    assert done.exit_code == 0 and done.stdout.startswith(f"{path}: sd1 model"), done.output
    got = {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}
    assert got == files and not list(tmp_path.glob("models/.*"))
    shown = CliRunner().invoke(main, ["models", "show", "mini", "--json"])
    assert json.loads(shown.stdout)["family"] == "sd1"
    out = tmp_path / "drawn.png"
    drawn = CliRunner().invoke(
        main, ["generate", "a car", "--model", "mini", "--steps", "1", "--size", "64x64", "-o", str(out)]
    )
    assert drawn.exit_code == 0 and out.is_file(), drawn.output


def test_what_lay_on_another_disk_is_put_in_its_place_too(
    hub: tuple[Hub, str], lora: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, url = hub
    made = miniature.write_sd1_folder(tmp_path / "made")
    files = {str(each.relative_to(made)): each.read_bytes() for each in made.rglob("*") if each.is_file()}
    there.add("me/mini", files)
    there.files["/ink.safetensors"] = lora
    beside, library = tmp_path / "beside", tmp_path / "library"
    moved = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        if self.is_relative_to(beside) != target.is_relative_to(beside):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return moved(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    for given in (f"{url}/ink.safetensors", "hf:me/mini"):
        card = get(find_source(given, read_json), library, beside, lambda *_: None)
        assert card.path.parent == library
    assert (library / "ink.safetensors").read_bytes() == lora
    got = {str(each.relative_to(library / "mini")): each.read_bytes() for each in (library / "mini").rglob("*.*")}
    assert got == files and sorted(each.name for each in library.iterdir()) == ["ink.safetensors", "mini"]
    assert not list(beside.iterdir())


def test_a_folder_that_broke_off_goes_on_with_the_files_that_are_missing(hub: tuple[Hub, str], tmp_path: Path) -> None:
    there, _ = hub
    folder = miniature.write_sd1_folder(tmp_path / "made")
    files = {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    there.add("me/mini", files)
    lost = "/me/mini/resolve/main/vae/diffusion_pytorch_model.safetensors"
    data = there.files.pop(lost)
    assert _get("hf:me/mini").exit_code == 2 and not (tmp_path / "models/mini").exists()
    there.files[lost], there.asked = data, []
    assert _get("hf:me/mini").exit_code == 0
    unet = "/me/mini/resolve/main/unet/diffusion_pytorch_model.safetensors"
    assert lost in [where for where, _ in there.asked] and unet not in [where for where, _ in there.asked]


def test_civitai_names_the_file_itself(hub: tuple[Hub, str], lora: bytes, tmp_path: Path) -> None:
    there, url = hub
    there.files["/api/download/models/7"] = lora
    there.headers["/api/download/models/7"] = {
        "Content-Disposition": 'attachment; filename="../../Ink & Wash.safetensors"'
    }
    with download(Remote(f"{url}/api/download/models/7"), tmp_path, lambda *_: None) as (part, name):
        assert part.read_bytes() == lora and name == "Ink _ Wash.safetensors"


def _ask_nothing(url: str, token: str) -> Any:
    raise AssertionError(f"{url} was asked")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (
            "https://civitai.com/api/download/models/1?type=Model",
            "https://civitai.com/api/download/models/1?type=Model",
        ),
        ("http://www.civitai.com/api/download/models/1", "https://civitai.com/api/download/models/1"),
        ("https://host/a/b.ckpt", "https://host/a/b.ckpt"),
        ("HTTP://host:80/a%20b.ckpt?x=1", "HTTP://host:80/a%20b.ckpt?x=1"),
    ],
)
def test_addresses_are_understood(given: str, url: str) -> None:
    (file,) = find_source(given, _ask_nothing, {"CIVITAI_TOKEN": "t"}).files
    assert file.url == url and bool(file.token) == ("civitai" in url)


VERSION: dict[str, Any] = {
    "id": 128713,
    "files": [
        {"type": "VAE", "name": "v.pt", "downloadUrl": "https://civitai.com/api/download/models/128713?type=VAE"},
        {"type": "Model", "primary": True, "name": "ink.safetensors", "sizeKB": 1.5, "hashes": {"SHA256": "AB" * 32},
         "downloadUrl": "https://civitai.com/api/download/models/128713"},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "asked", "said"),
    [
        ("civitai:128713", "model-versions/128713", VERSION),
        ("https://civitai.com/models/4384/ink?modelVersionId=128713", "model-versions/128713", VERSION),
        ("https://civitai.com/models/4384/ink", "models/4384", {"modelVersions": [VERSION, {"id": 1}]}),
        ("https://civitai.com/models/4384", "models/4384", {"modelVersions": [VERSION]}),
    ],
)
def test_civitai_says_what_a_version_has(given: str, asked: str, said: Any) -> None:
    urls: list[tuple[str, str]] = []

    def ask(url: str, token: str) -> Any:
        urls.append((url, token))
        return said

    (file,) = find_source(given, ask, {"CIVITAI_TOKEN": "t"}).files
    assert urls == [(f"https://civitai.com/api/v1/{asked}", "t")]
    assert file == Remote("https://civitai.com/api/download/models/128713", "ink.safetensors", 1536, "ab" * 32, "t")


@pytest.mark.parametrize("url", ["https://evil.example/x", "http://civitai.com/x", "", None])
def test_civitais_token_is_for_civitai(url: str | None) -> None:
    said = {"files": [VERSION["files"][1] | {"downloadUrl": url, "name": "../x"}]}
    (file,) = find_source("civitai:7", lambda *_: said, {"CIVITAI_TOKEN": "t"}).files
    assert file == Remote("https://civitai.com/api/download/models/7", token="t")
    (file,) = find_source("civitai:7", lambda *_: ["nothing"], {"CIVITAI_TOKEN": "t"}).files
    assert file.url == "https://civitai.com/api/download/models/7"


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("civitai:7", "civitai.com"), ("https://www.civitai.com/models/7", "civitai.com"),
        ("hf:a/b", "huggingface.co"), ("https://hf.co/a/b/blob/main/c.ckpt", "huggingface.co"),
        ("https://Example.org:8080/a.ckpt", "example.org:8080"), ("http://[::1]/a", "[::1]"),
    ],
)  # fmt: skip
def test_it_is_known_beforehand_which_host_is_asked(given: str, host: str) -> None:
    assert host_of(given, {}) == host
    mirror = {"HF_ENDPOINT": "https://mirror.example/"}
    assert host_of("hf:a/b", mirror) == "mirror.example" == known_hosts(mirror)[0]


@pytest.mark.parametrize("given", ["hf:a/b/c/d.ckpt@v1", "https://huggingface.co/a/b/blob/v1/c/d.ckpt"])
def test_a_file_of_the_hub_is_known_by_its_list(given: str) -> None:
    asked: list[str] = []

    def ask(url: str, token: str) -> Any:
        asked.append(url)
        return [{"type": "file", "path": "c/d.ckpt", "size": 5, "lfs": {"oid": "a" * 64}}]

    (file,) = find_source(given, ask, {}).files
    assert asked == ["https://huggingface.co/api/models/a/b/tree/v1?recursive=true"]
    assert (file.url, file.name) == ("https://huggingface.co/a/b/resolve/v1/c/d.ckpt", "d.ckpt")
    assert (file.num_bytes, file.sha256) == (5, "a" * 64)


@pytest.mark.parametrize(
    ("given", "path", "asked"),
    [
        ("https://huggingface.co/a/b/blob/main/My%20Model.ckpt", "My Model.ckpt", "a/b/resolve/main/My%20Model.ckpt"),
        ("https://huggingface.co/a/b/blob/refs%2Fpr%2F1/c.ckpt", "c.ckpt", "a/b/resolve/refs%2Fpr%2F1/c.ckpt"),
        ("hf:a/b?x/c.ckpt", "c.ckpt", "a/b%3Fx/resolve/main/c.ckpt"),
    ],
)
def test_addresses_with_escapes_are_those_of_pages(given: str, path: str, asked: str) -> None:
    (file,) = find_source(given, lambda *_: [{"type": "file", "path": path, "size": 5}], {}).files
    assert (file.name, file.url) == (path, f"https://huggingface.co/{asked}")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("stable-diffusion", "names nothing that can be fetched"),
        ("file:///etc/passwd", "names nothing that can be fetched"),
        ("hf:a", "says no repository"),
        ("hf:a/b/lost.ckpt", "There is no lost.ckpt in a/b. Its weights: one.ckpt"),
        ("hf:a/b", "Say which file of it, as hf:a/b/FILE. Its weights: one.ckpt"),
        ("civitai:ink", "names no model there"),
        ("https://civitai.com/user/me", "names no model there"),
        ("https://civitai.com/models/4384", "has no version to fetch"),
        ("https://civitai.com@evil.example/models/1", "no plain address"),
        ("http://[x", "no plain address"),
        ("https://host/\u00e9.ckpt", "no plain address"),
        ("https://a\\\\@b/x.ckpt", "no plain address"),
    ],
)
def test_what_cannot_be_meant_is_said(given: str, said: str) -> None:
    listed = [{"type": "file", "path": "one.ckpt", "size": 5}, {"type": "file", "path": "../two.ckpt"}, "three"]
    with pytest.raises(RequestError, match=said):
        find_source(given, lambda *_: listed, {})


def test_of_weights_that_are_there_twice_one_is_chosen() -> None:
    unet = "unet/diffusion_pytorch_model"
    paths = [
        *("model_index.json", "unet/config.json", "sd.ckpt", "safety_checker/model.safetensors", "unet/a/b.json"),
        *(f"{unet}{end}" for end in (".bin", ".safetensors", ".fp16.safetensors", ".non_ema.safetensors", ".onnx")),
        *(
            "text_encoder/pytorch_model.bin",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "text_encoder/flax_model.bin",
        ),
    ]
    plain, half = files_of_folder(paths), files_of_folder(paths, half=True)
    assert sorted(plain) == sorted(
        ["model_index.json", "unet/config.json", f"{unet}.safetensors", "text_encoder/pytorch_model.bin",
         "tokenizer/vocab.json", "tokenizer/merges.txt"]
    )  # fmt: skip
    assert set(half) - set(plain) == {f"{unet}.fp16.safetensors"} and set(plain) - set(half) == {f"{unet}.safetensors"}
    shards = [f"{unet}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    table = f"{unet}.safetensors.index.fp16.json"
    assert files_of_folder(["model_index.json", *shards, table]) == ["model_index.json", *shards, table]
    control = ["config.json", "diffusion_pytorch_model.bin", "README.md", "images/a.png", "sd.json"]
    assert files_of_folder(control) == ["config.json", "diffusion_pytorch_model.bin"]
    assert files_of_folder(["config.json", "README.md"]) == [] == files_of_folder(["model.safetensors"])


def test_in_a1111s_own_folder_everything_goes_where_a1111_looks(
    hub: tuple[Hub, str], lora: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui = tmp_path / "webui"
    for name in ("models/Lora", "embeddings"):
        (webui / name).mkdir(parents=True)
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", str(webui))
    hub[0].files["/ink.safetensors"] = lora
    assert _get(f"{hub[1]}/ink.safetensors").exit_code == 0 and (webui / "models/Lora/ink.safetensors").is_file()
    assert home_of("embedding", webui / "models") == webui / "embeddings"
    monkeypatch.setenv("DISEGNO_MODEL_DIRS", "")
    nowhere = _get(f"{hub[1]}/ink.safetensors")
    assert nowhere.exit_code == 2 and "no model folder" in nowhere.stderr


def test_every_kind_has_its_place_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    assert home_of("lora", tmp_path) == tmp_path / "loras" and home_of("model", tmp_path) == tmp_path
