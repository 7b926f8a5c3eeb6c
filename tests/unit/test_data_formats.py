"""Each form of a data set opens as the same pairs; what is hostile in it reaches nothing outside."""

import gzip
import importlib.util
import io
import json
import os
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from disegno.core.errors import BadData, RequestError
from disegno.training.data import open_pairs
from disegno.training.data.fetch import fetch
from disegno.training.data.shards import Share, expand
from disegno.training.data.tars import members

pytestmark = pytest.mark.unit


def _folders() -> ModuleType:
    spec = importlib.util.spec_from_file_location("folders", Path(__file__).parents[1] / "corpus" / "folders.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["folders"] = module
    spec.loader.exec_module(module)
    return module


folders = _folders()
write = folders.write
SIZE = {"width": 24, "height": 16}
TARGETS = [folders.png(folders.picture(i, **SIZE)) for i in range(4)]
CONDITIONS = [folders.png(folders.picture(i + 500, **SIZE)) for i in range(4)]
CAPTIONS = [f'a "cat", number {i}' for i in range(4)]


def tar(members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def shard(rows: range, form: int = tarfile.PAX_FORMAT) -> bytes:
    members = [
        (f"{i:06d}.{suffix}", data)
        for i in rows
        for suffix, data in (("png", TARGETS[i]), ("cond.png", CONDITIONS[i]), ("txt", CAPTIONS[i].encode()))
    ]
    return tar(members, form)


def imagefolder(folder: Path, num: int = 4) -> Path:
    lines = [{"file_name": f"{i}.png", "conditioning_image": f"c/{i}.png", "text": CAPTIONS[i]} for i in range(num)]
    files = {f"{i}.png": TARGETS[i] for i in range(num)} | {f"c/{i}.png": CONDITIONS[i] for i in range(num)}
    return write(folder, files | {"metadata.jsonl": "\n".join(map(json.dumps, lines))})


def table(folder: Path) -> Path:
    imagefolder(folder)
    (folder / "metadata.jsonl").unlink()
    quoted = [CAPTIONS[i].replace('"', '""') for i in range(4)]
    rows = "".join(f'{i}.png,c/{i}.png,"{quoted[i]}"\r\n' for i in range(4))
    return write(folder, {"metadata.csv": "\ufefffile_name,control_file_name,caption\r\n" + rows})


def two_folders(folder: Path, targets: str = "Images", conditions: str = "conditioning_images") -> Path:
    files = {f"{targets}/{i}.png": TARGETS[i] for i in range(4)} | {f"{targets}/{i}.txt": CAPTIONS[i] for i in range(4)}
    return write(folder, files | {f"{conditions}/{i}.png": CONDITIONS[i] for i in range(4)})


def kohya(folder: Path) -> Path:
    two_folders(folder, "photos", "edges")
    text = '[general]\nx = 1\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = "photos"\nnum_repeats = 1000000000\n'
    return write(folder, {"set.toml": text + 'conditioning_data_dir = "./edges"\n'}) / "set.toml"


FORMS = {
    "imagefolder": imagefolder,
    "train": lambda folder: imagefolder(folder / "train").parent,
    "csv": table,
    "folders": two_folders,
    "images and masks": lambda folder: two_folders(folder, "images", "Masks"),
    "source and target": lambda folder: two_folders(folder, "target", "source"),
    "kohya": kohya,
    "tar": lambda folder: write(folder, {"a.tar": shard(range(4))}) / "a.tar",
    "tars": lambda folder: write(folder, {"0.tar": shard(range(2), tarfile.GNU_FORMAT), "1.tar": shard(range(2, 4))}),
    "braces": lambda folder: write(folder, {f"a-0{7 + i}.tar": shard(range(2 * i, 2 * i + 2)) for i in (0, 1)})
    / "a-{07..08}.tar",
    "star": lambda folder: write(folder, {"a-0.tar": shard(range(2)), "a-1.tar": shard(range(2, 4))}) / "a-*.tar",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_opens_as_the_same_pairs(form: str, tmp_path: Path) -> None:
    pairs = open_pairs(str(FORMS[form](tmp_path)))
    assert len(pairs) == 4 and not pairs.problems
    assert len({pairs.key(i) for i in range(4)}) == len({pairs.digest(i) for i in range(4)}) == 4
    for i in range(4):
        sample = pairs.read(i)
        assert np.array_equal(sample.target, folders.picture(i, **SIZE))
        assert np.array_equal(sample.condition, folders.picture(i + 500, **SIZE))
        assert sample.caption == CAPTIONS[i] and pairs.size(i) == (24, 16)


@pytest.mark.parametrize(
    ("mark", "encoding", "said"),
    [(";", "utf-8", "semicolons"), ("\t", "utf-8", "tabs"), (",", "utf-16", "UTF-16"), ("|", "utf-8", "it names")],
)
def test_a_table_that_was_saved_otherwise_is_refused_with_what_helps(
    tmp_path: Path, mark: str, encoding: str, said: str
) -> None:
    text = table(tmp_path).joinpath("metadata.csv").read_text("utf-8-sig")
    (tmp_path / "metadata.csv").write_bytes(text.replace(",", mark).encode(encoding))
    with pytest.raises(BadData, match=rf"(?s)no column .*{said}.*commas between the columns, in UTF-8") as found:
        open_pairs(str(tmp_path))
    assert "JSON" not in str(found.value)


def test_a_table_may_have_spaces_after_its_commas(tmp_path: Path) -> None:
    file = table(tmp_path) / "metadata.csv"
    file.write_text(file.read_text("utf-8-sig").replace(",", ", "), "utf-8")
    assert len(open_pairs(str(tmp_path))) == 4


def test_a_row_of_a_table_that_says_no_pair_is_no_line_of_json(tmp_path: Path) -> None:
    file = table(tmp_path) / "metadata.csv"
    file.write_text(file.read_text("utf-8") + ",,only words\n", "utf-8")
    assert [problem.kind for problem in open_pairs(str(tmp_path)).problems] == ["bad_row"]


def test_a_caption_with_commas_is_never_cut_at_one(tmp_path: Path) -> None:
    """Without quotes it would go on in columns that have no name: such a row is named, not taken with half of it."""
    file = table(tmp_path) / "metadata.csv"
    text = file.read_text("utf-8")
    file.write_text(text + "0.png,c/0.png,a car, red, by night\n1.png,c/1.png,a car,,\n", "utf-8")
    pairs = open_pairs(str(tmp_path))
    assert [(p.kind, p.line) for p in pairs.problems] == [("bad_row", 6)]
    assert "'red,by night'" in pairs.problems[0].detail
    assert [pairs.caption(i) for i in range(len(pairs))] == [*CAPTIONS, "a car"]
    for ends in ("", ",", ",,"):
        file.write_text(f"file_name,text{ends}\n0.png,a car, red\n", "utf-8")
        with pytest.raises(BadData, match="in quotes"):
            open_pairs(str(tmp_path), annotator="invert")
    file.write_text(",file_name,text,\n7,0.png,a car,\n", "utf-8")
    assert open_pairs(str(tmp_path), annotator="invert").caption(0) == "a car"


def test_pictures_alone_take_an_annotators_conditions(tmp_path: Path) -> None:
    write(tmp_path, {"a/0.png": TARGETS[0], "a/0.txt": "x", "1.JPG": TARGETS[1], "1.txt": "y"})
    with pytest.raises(BadData, match="Name an annotator"):
        open_pairs(str(tmp_path))
    pairs = open_pairs(str(tmp_path), annotator="invert")
    assert pairs.annotator == "invert" and [pairs.key(i) for i in range(2)] == ["1.JPG", "a/0.png"]
    assert np.array_equal(pairs.read(1).condition, 255 - folders.picture(0, **SIZE))
    blurred = open_pairs(str(tmp_path), annotator="blur", params={"sigma": 3})
    assert blurred.params["sigma"] == 3
    digests = {open_pairs(str(tmp_path), annotator="blur", params={"sigma": n}).digest(0) for n in (3, 3.5, 4)}
    assert len(digests) == 3
    with pytest.raises(RequestError, match="no parameter"):
        open_pairs(str(tmp_path), annotator="blur", params={"sigmas": 3})


def test_a_folder_of_conditions_goes_before_one_of_masks(tmp_path: Path) -> None:
    two_folders(tmp_path, "images", "condition")
    write(tmp_path, {f"masks/{i}.png": TARGETS[i] for i in range(4)})
    assert np.array_equal(open_pairs(str(tmp_path)).read(2).condition, folders.picture(502, **SIZE))
    write(tmp_path / "boxes", {"images/0.png": TARGETS[0], "labels/0.txt": "0 0.5 0.5 0.1 0.1"})
    assert open_pairs(str(tmp_path / "boxes"), annotator="invert").layout == "pictures"  # labels of another use


def test_a_caption_for_all_that_have_none(tmp_path: Path) -> None:
    two_folders(tmp_path)
    (tmp_path / "Images/2.txt").unlink()
    assert [p.kind for p in open_pairs(str(tmp_path)).problems] == ["missing_caption"]
    pairs = open_pairs(str(tmp_path), caption="a picture")
    assert pairs.caption(2) == "a picture" and len(pairs) == 4


@pytest.mark.parametrize("place", ["../other", "/etc", "photos/../../other", "C:\\photos", "missing", "set.toml"])
def test_kohyas_folders_lie_inside(tmp_path: Path, place: str) -> None:
    two_folders(tmp_path / "other")
    file = kohya(tmp_path / "set")
    file.write_text(file.read_text().replace('"photos"', json.dumps(place)))
    with pytest.raises(BadData):
        open_pairs(str(file))


@pytest.mark.parametrize("text", ["x = [", "x = 1", "datasets = 5", "[[datasets]]\nsubsets = []", "\x00"])
def test_what_is_no_file_of_kohyas_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadData):
        open_pairs(str(write(tmp_path, {"set.toml": text}) / "set.toml"))


def test_members_of_tars_are_known_by_their_suffix(tmp_path: Path) -> None:
    members = [
        ("x/0.jpg", TARGETS[0]), ("x/0.depth_control.png", b""), ("x/0.control.png", CONDITIONS[0]),
        ("x/0.json", json.dumps({"prompt": "from json", "n": 1}).encode()), ("x/0.npy", b"x"),
        ("1.target.png", TARGETS[1]), ("1.source.webp", CONDITIONS[1]), ("1.txt", b"one"), ("1.json", b"not json"),
        ("2.cond.png", CONDITIONS[2]), ("2.txt", b"no target"),
        ("3.png", TARGETS[3]), ("3.txt", b"no condition"),
        ("4.png", TARGETS[2]), ("4.cond.png", CONDITIONS[2]),
        ("1.png", TARGETS[3]), ("1.cond.png", CONDITIONS[3]), ("1.txt", b"one again"),
    ]  # fmt: skip
    pairs = open_pairs(str(write(tmp_path, {"s.tar": tar(members)}) / "s.tar"))
    assert [(pairs.key(i), pairs.caption(i)) for i in range(len(pairs))] == [
        ("s/x/0", "from json"), ("s/1", "one"), ("s/1#2", "one again"),
    ]  # fmt: skip
    assert {(p.kind, p.name) for p in pairs.problems} == {
        ("missing_target", "s/2"), ("missing_condition", "s/3"), ("missing_caption", "s/4"),
    }  # fmt: skip


def test_hostile_tars_reach_nothing(tmp_path: Path) -> None:
    secret = write(tmp_path, {"secret.png": TARGETS[0]}) / "secret.png"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, kind, link in (("a.png", tarfile.SYMTYPE, str(secret)), ("b.png", tarfile.LNKTYPE, "c.png"),
                                 ("d.png", tarfile.CHRTYPE, ""), ("e.png", tarfile.FIFOTYPE, "")):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            file.addfile(member)
        for name, data in (("../../f.png", TARGETS[1]), ("../../f.cond.png", CONDITIONS[1]), ("../../f.txt", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    pairs = open_pairs(str(write(tmp_path, {"set/h.tar": buffer.getvalue()}) / "set/h.tar"))
    assert [pairs.key(i) for i in range(len(pairs))] == ["h/../../f"]
    assert pairs.read(0).caption == "x"
    assert sorted(p for p in tmp_path.rglob("*") if "set" not in p.parts) == before


def test_damaged_tars_are_refused(tmp_path: Path) -> None:
    whole = shard(range(2))
    huge = tarfile.TarInfo("0.png")
    huge.size = 1 << 40
    deep = bytearray(tarfile.TarInfo("x").tobuf())
    deep[124:136] = b"\xff" * 12  # a size below zero
    for content in (
        b"", b"x" * 2000, whole[:700], gzip.compress(whole), huge.tobuf() + bytes(1024),
        tarfile.TarInfo("././@LongLink").tobuf().replace(b"0", b"L") + bytes(1024), bytes(deep) + bytes(1024),
    ):  # fmt: skip
        with pytest.raises(BadData):
            open_pairs(str(write(tmp_path, {"s.tar": content}) / "s.tar"))
    rng = np.random.default_rng(0)
    for _ in range(200):
        content = bytearray(whole)
        for at in rng.integers(0, 3000, 3):
            content[at] = rng.integers(0, 256)
        path = write(tmp_path, {"s.tar": bytes(content)}) / "s.tar"
        try:
            pairs = open_pairs(str(path))
            for i in range(len(pairs)):
                pairs.read(i)
        except RequestError:
            continue


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_pythons_own_tarfile_finds_them(tmp_path: Path, form: int) -> None:
    rng = np.random.default_rng(form)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for number in range(200):
            length = (
                int(rng.integers(1, 90)) if form == tarfile.USTAR_FORMAT or number % 2 else int(rng.integers(90, 700))
            )
            letters = "abc.é/" if form != tarfile.USTAR_FORMAT else "abc./"
            member = tarfile.TarInfo(f"{number}" + "".join(rng.choice(list(letters), length)) + "x")
            member.size, member.mtime = int(rng.integers(0, 2000)), float(rng.random() * 1e9)
            member.type = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE][max(0, number % 7 - 3)]
            member.linkname = "y" * (length if form != tarfile.USTAR_FORMAT else 5) if member.issym() else ""
            file.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    path = write(tmp_path, {"s.tar": buffer.getvalue()}) / "s.tar"
    with tarfile.open(path) as file:
        theirs = [(m.name, m.offset_data, m.size) for m in file if m.isreg()]
    with path.open("rb") as file:
        ours = list(members(file))
    assert len(ours) > 100 and [(name.rstrip("/"), *rest) for name, *rest in ours] == theirs


def test_a_pipe_called_tar_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.tar")
    with pytest.raises(BadData, match="not a plain file"):
        open_pairs(str(tmp_path / "p.tar"))


def test_patterns_spell_names() -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{a,b}-{0..1}.tar::c.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar", "c.tar"]
    for pattern in ("{0..999999999}.tar", "{9..0}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(BadData):
            expand(pattern)
    for spec in ("pipe:touch x.tar", "file:///etc/x.tar", "ftp://host/x.tar", "s3://bucket/x.tar"):
        with pytest.raises(BadData, match="no http or https"):
            open_pairs(spec)


def test_tars_are_shared_out_over_processes(tmp_path: Path) -> None:
    write(tmp_path, {f"a-{i}.tar": shard(range(i, i + 1)) for i in range(4)})
    whole = open_pairs(str(tmp_path))
    shares = [open_pairs(str(tmp_path), share=Share(rank, 3)) for rank in range(3)]
    keys = [share.key(i) for share in shares for i in range(len(share))]
    assert sorted(keys) == [whole.key(i) for i in range(4)] and [len(share) for share in shares] == [2, 1, 1]
    with pytest.raises(BadData, match="Use fewer processes"):
        open_pairs(str(tmp_path), share=Share(4, 5))


class Server(BaseHTTPRequestHandler):
    """Serves `files`; cuts the first answers to `cut` off in the middle."""

    files: dict[str, bytes]
    cut: dict[str, int]
    asked: list[tuple[str, int, str]]

    def do_GET(self) -> None:
        if self.path == "/away.tar":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        etag = f'"{hash(data)}"'
        begin = 0
        if self.headers.get("If-None-Match") == etag:
            self.asked.append((self.path, 304, ""))
            self.send_response(304)
            self.end_headers()
            return
        if self.headers.get("Range") and self.headers.get("If-Range") == etag:
            begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if begin >= len(data):
            self.send_error(416)
            return
        self.asked.append((self.path, 206 if begin else 200, self.headers.get("Range", "")))
        self.send_response(206 if begin else 200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        body = data[begin:]
        if self.cut.get(self.path, 0):
            self.cut[self.path] -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    Server.files, Server.cut, Server.asked = {}, {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_tars_by_url_are_fetched_once_and_again_when_they_change(tmp_path: Path, server: str) -> None:
    Server.files = {f"/a-{i}.tar": shard(range(2 * i, 2 * i + 2)) for i in range(2)}
    spec = f"{server}/a-{{0..1}}.tar"
    told: list[str] = []

    def opened(**options: object) -> list[str]:
        pairs = open_pairs(spec, cache_dir=tmp_path, told=lambda stage, done, of: told.append(stage), **options)
        return [pairs.caption(i) for i in range(len(pairs))]

    assert opened() == CAPTIONS and told[0] == "fetching a-0.tar"
    assert opened(share=Share(1, 2)) == CAPTIONS[2:]
    assert [status for _, status, _ in Server.asked] == [200, 200, 304]
    Server.files["/a-1.tar"] = shard(range(1))
    assert opened() == [*CAPTIONS[:2], CAPTIONS[0]]
    with pytest.raises(BadData, match="not opened here"):
        opened(urls=False)


def test_a_transfer_that_breaks_goes_on(tmp_path: Path, server: str) -> None:
    Server.files, Server.cut = {"/a.tar": shard(range(4))}, {"/a.tar": 2}
    path = fetch(f"{server}/a.tar", tmp_path, lambda done, of: None, pause_seconds=0.01)
    assert path.read_bytes() == Server.files["/a.tar"]
    assert [status for _, status, _ in Server.asked] == [200, 206, 206]
    Server.cut = {"/b.tar": 99}  # until nothing more comes
    Server.files["/b.tar"] = shard(range(4))
    with pytest.raises(BadData, match="cannot be fetched"):
        fetch(f"{server}/b.tar", tmp_path, lambda done, of: None, pause_seconds=0.01)


def test_a_newer_file_that_breaks_off_is_asked_for_again(tmp_path: Path, server: str) -> None:
    def fetched() -> bytes:
        return fetch(f"{server}/a.tar", tmp_path, lambda done, of: None, pause_seconds=0.001).read_bytes()

    old, new = shard(range(2)), shard(range(4))
    Server.files = {"/a.tar": old}
    assert fetched() == old
    Server.files, Server.cut = {"/a.tar": new}, {"/a.tar": 9}
    assert fetched() == old
    Server.cut = {}
    assert fetched() == new


def test_a_part_that_was_whole_is_fetched_again(tmp_path: Path, server: str) -> None:
    Server.files = {"/a.tar": shard(range(2))}
    path = fetch(f"{server}/a.tar", tmp_path, lambda done, of: None)
    path.rename(path.with_suffix(".part"))  # as where it ended between the last byte and the file's name
    path.with_suffix(".json").rename(path.with_suffix(".part.json"))
    assert fetch(f"{server}/a.tar", tmp_path, lambda done, of: None).read_bytes() == Server.files["/a.tar"]


def test_what_cannot_be_fetched_is_said_and_what_was_is_kept(tmp_path: Path, server: str) -> None:
    for name in ("missing.tar", "away.tar"):
        with pytest.raises(BadData, match="cannot be fetched"):
            fetch(f"{server}/{name}", tmp_path, lambda done, of: None)
    Server.files = {"/a.tar": shard(range(4))}
    first = fetch(f"{server}/a.tar", tmp_path, lambda done, of: None)
    assert first.stat().st_size == len(Server.files["/a.tar"])
