"""Fetching from servers, over networks and onto disks that do what they should not; and from a process that dies."""

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from disegno.backbones import miniature
from disegno.core.errors import RequestError, ResourceError
from disegno.core.settings import Settings
from disegno.serving.settings import Limits
from disegno.serving.shelf import DownloadRequest, check_download
from disegno.training.data.fetch import fetch
from disegno.weights import download as download_module
from disegno.weights import getting
from disegno.weights.card import FileCard
from disegno.weights.download import Remote, download, read_json
from disegno.weights.getting import get
from disegno.weights.library import Library
from disegno.weights.sources import find_source
from kit.hub import Hub, lora_file, serving_hub

pytestmark = pytest.mark.unit

Answer = Callable[[BaseHTTPRequestHandler], None]
OLD, NEW = b"a" * 5000, b"b" * 5000


class _Stop(Exception):
    """A person wants it to end."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, str]]:
    with serving_hub() as (there, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield there, address


@pytest.fixture
def odd() -> Iterator[tuple[list[Answer], str]]:
    """A server's next answers, and a file's address there."""
    answers = list[Answer]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):
                answers.pop(0)(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield answers, f"http://127.0.0.1:{server.server_port}/x.bin"
    server.shutdown()
    thread.join()
    server.server_close()


def _answer(data: bytes, status: int = 200, **headers: str | None) -> Answer:
    """Return an answer with these headers (None: without), _ for - in their names."""
    given = {"Content_Length": str(len(data)), "ETag": '"old"'} | headers

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in given.items():
            if value is not None:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


CUT = _answer(OLD[:2000], Content_Length="5000")


def _fetched(url: str, folder: Path, num_bytes: int = 0) -> bytes:
    with download(Remote(url, num_bytes=num_bytes), folder, lambda *_: None, pause_seconds=0) as (part, _):
        return part.read_bytes()


def _get(url: str, folder: Path, name: str | None = None, told: getting.Told = lambda *_: None) -> FileCard:
    return get(find_source(url, read_json), folder, folder.parent / "beside", told, name)


# ---- what comes


@pytest.mark.parametrize(
    "piece",
    [
        _answer(NEW[2000:], 206, ETag='"new"', Content_Range="bytes 2000-4999/5000"),  # If-Range was not heard
        _answer(OLD, 206, Content_Range="bytes 0-4999/5000"),
        _answer(OLD[2000:], 206),
    ],
)
def test_a_piece_that_does_not_follow_on_what_is_there_is_not_taken(
    odd: tuple[list[Answer], str], tmp_path: Path, piece: Answer
) -> None:
    odd[0][:] = [CUT, piece, _answer(NEW, ETag='"new"')]
    assert _fetched(odd[1], tmp_path) == NEW


def test_a_piece_that_was_not_asked_for_is_no_file(odd: tuple[list[Answer], str], tmp_path: Path) -> None:
    odd[0][:] = [_answer(OLD, 206, Content_Range="bytes 0-4999/9000")] * 5
    with pytest.raises(RequestError, match="a piece of the file"):
        _fetched(odd[1], tmp_path)


def test_old_bytes_never_lie_beside_a_new_note(
    odd: tuple[list[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = download_module.write_atomically

    def killed(path: Path, write: Callable[[Path], object]) -> None:
        written(path, write)
        if b"new" in path.read_bytes():
            raise KeyboardInterrupt

    odd[0][:] = [CUT, _answer(NEW, ETag='"new"')]
    monkeypatch.setattr(download_module, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        _fetched(odd[1], tmp_path)
    monkeypatch.undo()
    asked = list[str | None]()

    def rest(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Range"])
        _answer(NEW, ETag='"new"')(handler)

    odd[0].append(rest)
    assert _fetched(odd[1], tmp_path) == NEW and asked == [None]


@pytest.mark.parametrize("length", [None, "many", "-7"])
def test_without_a_length_the_one_that_is_known_counts(
    odd: tuple[list[Answer], str], tmp_path: Path, length: str | None
) -> None:
    whole, cut = (_answer(data, Content_Length=length, ETag=None) for data in (OLD, OLD[:3000]))
    odd[0][:] = [cut, whole]
    assert _fetched(odd[1], tmp_path, 5000) == OLD
    odd[0][:] = [whole]
    assert _fetched(odd[1], tmp_path) == OLD


def test_shards_are_no_mixture_of_two_versions(odd: tuple[list[Answer], str], tmp_path: Path) -> None:
    new = _answer(NEW, ETag='"new"')
    odd[0][:] = [CUT, _answer(NEW[2000:], 206, ETag='"new"', Content_Range="bytes 2000-4999/5000"), new]
    assert fetch(odd[1], tmp_path, lambda *_: None, pause_seconds=0).read_bytes() == NEW


def test_a_host_that_drips_holds_nobody_up(
    odd: tuple[list[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        _answer(b"[", Content_Length="5000")(handler)
        while not over.wait(0.02):
            handler.wfile.write(b" ")

    def told(done: int, of: int) -> None:
        if done > 2:
            raise _Stop

    odd[0][:] = [drip, drip]
    with pytest.raises(_Stop), download(Remote(odd[1]), tmp_path, told):
        pass
    monkeypatch.setattr(download_module, "_MAX_TEXT_SECONDS", 0.1)
    with pytest.raises(RequestError, match="takes too long"):
        read_json(odd[1])
    over.set()


def test_a_network_that_is_lost_is_no_full_disk(
    hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, url = hub
    there.files["/large.bin"] = data = bytes(range(256)) * 8192
    read, lost = HTTPResponse.read1, [errno.EHOSTUNREACH, errno.ENETDOWN]

    def reads(self: HTTPResponse, n: int = -1) -> bytes:
        if lost:
            raise OSError(lost.pop(), "No route to host")
        return read(self, n)

    monkeypatch.setattr(HTTPResponse, "read1", reads)
    assert _fetched(f"{url}/large.bin", tmp_path) == data
    lost[:] = [errno.EHOSTUNREACH] * 9
    with pytest.raises(RequestError, match=r"No route to host.* Look whether there is a network"):
        _fetched(f"{url}/large.bin", tmp_path / "other")


def test_a_transfer_that_comes_on_may_break_as_often_as_it_will(hub: tuple[Hub, str], tmp_path: Path) -> None:
    hub[0].files["/large.bin"] = data = bytes(range(256)) * 8192
    hub[0].breaks_after = [100_000] * 12
    assert _fetched(f"{hub[1]}/large.bin", tmp_path) == data


def test_an_address_that_can_be_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be fetched"):
        _fetched("http://a..b/x.ckpt", tmp_path)


def test_a_redirect_leads_from_the_internet_to_no_inner_host(
    hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, url = hub
    there.files["/inner"] = b'"secret"'
    there.away["/large.bin"] = f"{there.other}/inner"
    named = url.replace("127.0.0.1", "localhost")
    assert _fetched(f"{named}/large.bin", tmp_path / "a") == b'"secret"'  # both are within
    monkeypatch.setattr(
        download_module, "addresses_of", lambda host, _port: ["8.8.8.8"] if host == "localhost" else ["8.8.4.4", host]
    )
    there.asked = []
    for act in (lambda: _fetched(f"{named}/large.bin", tmp_path / "b"), lambda: read_json(f"{named}/large.bin")):
        with pytest.raises(RequestError, match="no public host"):
            act()
    assert {path for path, _ in there.asked} == {"/large.bin"}
    there.away["/large.bin"] = f"{named}/inner"
    assert read_json(f"{named}/large.bin") == "secret"


# ---- where it is put


def test_of_two_folders_of_one_name_each_has_its_own_files(hub: tuple[Hub, str], tmp_path: Path) -> None:
    there, _ = hub
    made = miniature.write_sd1_folder(tmp_path / "made")
    files = {str(each.relative_to(made)): each.read_bytes() for each in made.rglob("*") if each.is_file()}
    bobs = {name: data[:-8] + bytes(8) if name.endswith(".safetensors") else data for name, data in files.items()}
    there.add("alice/mini", files)
    there.add("bob/mini", bobs)
    there.files.pop("/alice/mini/resolve/main/vae/diffusion_pytorch_model.safetensors")
    with pytest.raises(RequestError):
        _get("hf:alice/mini", tmp_path / "library")
    card = _get("hf:bob/mini", tmp_path / "library")
    assert {name: (card.path / name).read_bytes() for name in bobs} == bobs


def test_room_is_wanted_for_what_is_still_to_come(
    hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, _ = hub
    data = lora_file(1024)
    there.add("me/inks", {"ink.safetensors": data})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2**20))
    with pytest.raises(ResourceError, match=r"0\.00 GiB are to come.* Free space"):
        _get("hf:me/inks/ink.safetensors", tmp_path / "library")
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub[1])

    def told(done: int, *_: object) -> None:
        if done > len(data) - 2**19:
            raise _Stop

    with pytest.raises(_Stop):
        _get("hf:me/inks/ink.safetensors", tmp_path / "library", told=told)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2**20))
    assert _get("hf:me/inks/ink.safetensors", tmp_path / "library").path.read_bytes() == data


def test_nobody_else_touches_what_is_being_looked_at(
    hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, look, refused = f"{hub[1]}/ink.safetensors", getting.identify, list[str]()
    hub[0].files["/ink.safetensors"] = lora_file()

    def looked(path: Path) -> FileCard:
        if path.suffix == ".part":
            with pytest.raises(RequestError, match="is being fetched already") as caught:
                _get(url, tmp_path / "library")
            refused.append(str(caught.value))
        return look(path)

    monkeypatch.setattr(getting, "identify", looked)
    assert _get(url, tmp_path / "library").path.read_bytes() == lora_file() and len(refused) == 1
    assert not list((tmp_path / "beside").iterdir())


@pytest.mark.parametrize("given", ["{url}/ink.safetensors", "hf:me/mini"])
def test_who_stops_it_while_it_is_looked_at_or_put_goes_on_later(
    hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    there, url = hub
    made = miniature.write_sd1_folder(tmp_path / "made")
    there.add("me/mini", {str(each.relative_to(made)): each.read_bytes() for each in made.rglob("*") if each.is_file()})
    there.files["/ink.safetensors"] = lora_file()
    given, library, look = given.format(url=url), tmp_path / "library", getting.identify
    stopped = list[str]()

    def stopped_at(suffix: str) -> Callable[[Path], FileCard]:
        def looked(path: Path) -> FileCard:
            if path.suffix == suffix:
                stopped.append(suffix)
            return look(path)

        return looked

    def told(*_: object) -> None:
        if stopped:
            raise _Stop

    monkeypatch.setattr(getting, "identify", stopped_at(".part"))
    with pytest.raises(_Stop):
        _get(given, library, told=told)
    assert not library.exists()  # it was not put there
    stopped.clear()
    monkeypatch.setattr(getting, "identify", stopped_at(".safetensors" if "ink" in given else ""))
    with pytest.raises(_Stop):
        _get(given, library, told=told)
    there.files.pop("/ink.safetensors")  # it is there, and nothing is fetched again
    stopped.clear()
    monkeypatch.setattr(getting, "identify", look)
    card = _get(given, library, told=told)
    assert card.path.parent == library and not list((tmp_path / "beside").iterdir())
    with pytest.raises(RequestError, match="is there already"):
        _get("hf:me/mini" if "mini" in given else f"{url}/ink.safetensors", library, card.path.name)


def test_what_a_killed_copy_left_is_used_up(
    hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub[0].files["/ink.safetensors"] = lora_file()
    beside, library, moved = tmp_path / "beside", tmp_path / "library", Path.replace

    def replaced(self: Path, target: Path) -> Path:
        if self.is_relative_to(beside) != target.is_relative_to(beside):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return moved(self, target)

    monkeypatch.setattr(Path, "replace", replaced)
    library.mkdir()
    (library / ".ink.safetensors.part").write_bytes(bytes(1_000_000))
    heard = list[str]()
    card = _get(f"{hub[1]}/ink.safetensors", library, told=lambda done, of, name: heard.append(name))
    assert card.path.read_bytes() == lora_file() and [each.name for each in library.iterdir()] == ["ink.safetensors"]
    assert heard.count("ink.safetensors") == 3  # before, while and after it is copied


@pytest.mark.parametrize(
    ("address", "name", "expected"),
    [
        ("/ink.safetensors", "my lora", "my lora.safetensors"),
        ("/ink.safetensors", "ink v1.5", "ink v1.5.safetensors"),
        ("/ink.SFT", "ink", "ink.SFT"),
        ("/ink.data", None, "ink.data.safetensors"),
        ("/ink.data", "ink", "ink.safetensors"),
        ("/" + "%E7%94%BB" * 90 + ".safetensors", None, "画" * 62 + ".safetensors"),
    ],
)
def test_every_file_has_a_name_by_which_it_is_found(
    hub: tuple[Hub, str], tmp_path: Path, address: str, name: str | None, expected: str
) -> None:
    hub[0].files[address] = lora_file()
    card = _get(f"{hub[1]}{address}", tmp_path / "library", name)
    assert card.path.name == expected
    settings = Settings(model_dirs=(tmp_path / "library",), cache_dir=tmp_path / "cache")
    assert [each.path.name for each in Library(settings).cards()] == [expected]
    hub[0].asked = []
    if name is not None and "ink.data" not in address:
        with pytest.raises(RequestError, match="is there already"):
            _get(f"{hub[1]}{address}", tmp_path / "library", expected)
        assert not hub[0].asked  # before it is fetched


@pytest.mark.parametrize(
    ("name", "said"), [("a\0b.safetensors", "is no name"), ("a\nb", "is no name"), ("画" * 90, r"no name .* 200")]
)
def test_what_no_disk_takes_as_a_name_is_said(hub: tuple[Hub, str], tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        _get(f"{hub[1]}/ink.safetensors", tmp_path, name)
    assert not hub[0].asked
    request = DownloadRequest(source="hf:a/b", name=name)
    with pytest.raises(RequestError, match=said):  # before it waits for its turn
        check_download(request, Limits(download_hosts=(hub[1].removeprefix("http://"),)))
