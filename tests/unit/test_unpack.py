"""A stranger's zip becomes a data set, or nothing at all."""

import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from disegno.core.errors import BadData, RequestError
from disegno.training.data import unpack as unpacking
from disegno.training.data.unpack import Bounds, Unpacked, unpack

pytestmark = pytest.mark.unit

BOUNDS = Bounds(files=20, num_bytes=100_000, file_bytes=50_000)
PNG = b"\x89PNG" + os.urandom(200)


def _zip(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return path


def _unpack(archive: Path, out: Path, bounds: Bounds = BOUNDS) -> Unpacked:
    *_, last = unpack(archive, out, bounds)
    assert isinstance(last, Unpacked)
    return last


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("top", ["", "mine/"])
def test_a_folder_is_unpacked(tmp_path: Path, top: str, how: int) -> None:
    members = {f"{top}image/a.png": PNG, f"{top}condition/a.PNG": PNG, f"{top}image/a.txt": b"a cat"}
    junk = {f"{top}.DS_Store": b"x", f"__MACOSX/{top}image/._a.png": b"x"}
    done = _unpack(_zip(tmp_path / "a.zip", members | junk, how), tmp_path / "out")
    assert done == Unpacked(3, 2 * len(PNG) + 5, {})
    assert _files(tmp_path / "out") == ["condition/a.PNG", "image/a.png", "image/a.txt"]
    assert (tmp_path / "out" / "image" / "a.png").read_bytes() == PNG


def test_the_folder_train_is_kept(tmp_path: Path) -> None:
    _unpack(_zip(tmp_path / "a.zip", {"train/a.png": PNG}), tmp_path / "out")
    assert _files(tmp_path / "out") == ["train/a.png"]


@pytest.mark.parametrize(
    "name",
    ["../x.png", "a/../../x.png", "/etc/x.png", "C:\\x.png", "..\\x.png", "a" * 200 + ".png", "d/" * 20 + "x.png"],
)
def test_names_that_lead_out_are_left_out(tmp_path: Path, name: str) -> None:
    done = _unpack(_zip(tmp_path / "a.zip", {name: PNG, "good.png": PNG}), tmp_path / "out")
    assert done.left_out == {"unsafe": 1} and _files(tmp_path) == ["a.zip", "out/good.png"]


def test_links_scripts_locked_and_double_files_are_left_out(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr(link, "/etc/passwd")
        out.writestr("run.py", "import os")
        out.writestr("a.png", PNG)
        out.writestr("A.png", PNG)
        out.writestr("b.png", PNG, zipfile.ZIP_LZMA)
        out.writestr("c.png", PNG)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    at = data.rindex(b"PK\1\2")  # the last member's: said to be encrypted
    data[at + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    done = _unpack(tmp_path / "a.zip", tmp_path / "out")
    assert done.left_out == {"unsafe": 1, "other": 1, "double": 1, "locked": 2}
    assert _files(tmp_path / "out") == ["a.png"]


def _lying(size: int) -> bytes:
    """Return a zip whose member says that it is shorter than it is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.png", bytes(1_000_000))
    data = bytearray(buffer.getvalue())
    for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", data, data.index(mark) + at, size)
    return bytes(data)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "no zip"),
        (b"PK" + bytes(100), "no zip"),
        (_lying(100), "damaged"),
        (b"PK\5\6" + bytes(18), "no file of a data set"),
        (b"PK\5\6" + bytes(8) + b"\xff\xff\xff\x7f" + bytes(6), "too many files"),
    ],
)
def test_what_is_no_zip_is_refused_and_leaves_nothing(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(BadData, match=said):
        _unpack(tmp_path / "a.zip", tmp_path / "out")
    assert _files(tmp_path) == ["a.zip"] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "members",
    [
        {"bomb.png": bytes(10_000_000)},
        {f"{n}.png": bytes(40_000) for n in range(4)},
        {f"{n}.txt": b"" for n in range(21)},
    ],
)
def test_a_bomb_is_refused_before_anything_is_written(
    tmp_path: Path, members: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("written")

    _zip(tmp_path / "a.zip", members)
    monkeypatch.setattr(unpacking.Path, "mkdir", never)
    with pytest.raises(BadData, match="at most"):
        _unpack(tmp_path / "a.zip", tmp_path / "out")


def test_a_data_set_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.png").write_bytes(PNG)
    with pytest.raises(RequestError, match="already"):
        _unpack(_zip(tmp_path / "a.zip", {"a.png": PNG}), tmp_path / "out")
    assert _files(tmp_path / "out") == ["mine.png"]


def test_a_crash_in_between_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / ".out.unpacking").mkdir()
    (tmp_path / ".out.unpacking" / "half.png").write_bytes(PNG)
    data = bytearray(_zip(tmp_path / "a.zip", {"a.png": PNG, "b.png": PNG}, zipfile.ZIP_STORED).read_bytes())
    data[data.index(PNG) + 10] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(BadData, match="damaged"):
        _unpack(tmp_path / "a.zip", tmp_path / "out")
    assert _files(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("told", [100, 0xFFFFFFFF])
def test_a_list_of_members_that_only_the_larger_end_tells_of_is_measured(tmp_path: Path, told: int) -> None:
    whole = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 65 << 20, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    (tmp_path / "a.zip").write_bytes(whole + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, told, 0, 0))
    with pytest.raises(BadData, match="lists too many"):
        _unpack(tmp_path / "a.zip", tmp_path / "out")
