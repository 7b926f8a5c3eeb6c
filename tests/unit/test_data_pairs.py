"""Data sets open as pairs, and split by what they show."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from disegno.annotators.maps import Picture
from disegno.core.errors import BadData, BadImage
from disegno.training.data import open_pairs, split, subset

pytestmark = pytest.mark.unit


def _folders() -> ModuleType:
    spec = importlib.util.spec_from_file_location("folders", Path(__file__).parents[1] / "corpus" / "folders.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["folders"] = module
    spec.loader.exec_module(module)
    return module


folders = _folders()
png, write = folders.png, folders.write


def picture(seed: int, width: int = 24, height: int = 16) -> Picture:
    return folders.picture(seed, width, height)


def controlnet(folder: Path, num: int, same: int = 0) -> Path:
    return write(folder, folders.controlnet(num, same, width=24, height=16))


def test_controlnets_form(tmp_path: Path) -> None:
    pairs = open_pairs(str(controlnet(tmp_path, 3)))
    assert len(pairs) == 3 and pairs.layout == "controlnet" and pairs.annotator is None and not pairs.problems
    sample = pairs.read(1)
    assert np.array_equal(sample.target, picture(1)) and np.array_equal(sample.condition, picture(501))
    assert sample.caption == pairs.caption(1) == "picture 1" and pairs.size(1) == (24, 16)
    assert pairs.key(1) == "target/1.png" and len({pairs.digest(i) for i in range(3)}) == 3


def test_a_digest_follows_every_part_of_a_row(tmp_path: Path) -> None:
    folder = controlnet(tmp_path, 1)

    def digest() -> str:
        return open_pairs(str(folder)).digest(0)

    seen = {digest()}
    stamp = (folder / "target/0.png").stat()
    write(folder, {"target/0.png": png(picture(7))})
    os.utime(folder / "target/0.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    seen.add(digest())
    write(folder, {"source/0.png": png(picture(8))})
    seen.add(digest())
    write(folder, {"prompt.json": (folder / "prompt.json").read_text().replace("picture 0", "picture")})
    seen.add(digest())
    assert len(seen) == 4


def test_lines_that_say_no_pair_are_named(tmp_path: Path) -> None:
    folder = controlnet(tmp_path / "set", 2)
    (tmp_path / "secret.png").write_bytes(png(picture(0)))
    good = (folder / "prompt.json").read_text().splitlines()
    bad = [
        "not json",
        '{"source": 5}',
        json.dumps({"source": "../secret.png", "target": "target/0.png", "prompt": "x"}),
        json.dumps({"source": str(tmp_path / "secret.png"), "target": "target/0.png", "prompt": "x"}),
        json.dumps({"source": "C:\\secret.png", "target": "target/0.png", "prompt": "x"}),
        "[" * 100_000,
        '"text"',
        '{"source": "' + "x" * (1 << 20) + '"}',
    ]
    text = "\r\n\r\n".join([*bad, *good]).encode()
    write(folder, {"prompt.json": b"\xef\xbb\xbf" + text + b"\r\n\xff\xfe\r\n"})
    pairs = open_pairs(str(folder))
    assert [pairs.key(i) for i in range(len(pairs))] == ["target/0.png", "target/1.png"]
    assert [problem.line for problem in pairs.problems] == [1, 3, 5, 7, 9, 11, 13, 15, 20]
    assert {problem.kind for problem in pairs.problems} == {"bad_line"}


def test_names_as_other_systems_write_them(tmp_path: Path) -> None:
    image = png(picture(0))
    write(tmp_path, {"source/gar\u00e7on.png": image, "target/gar\u00e7on.png": image})
    line = {"source": "source\\garc\u0327on.png", "target": "target\\garc\u0327on.png", "prompt": "a boy"}
    write(tmp_path, {"prompt.json": json.dumps(line)})
    assert open_pairs(str(tmp_path)).read(0).caption == "a boy"


def test_a_condition_of_another_size_is_brought_to_its_target_but_never_stretched(tmp_path: Path) -> None:
    folder = controlnet(tmp_path, 2)
    write(folder, {"source/0.png": png(picture(0, 12, 8)), "source/1.png": png(picture(0, 12, 12))})
    pairs = open_pairs(str(folder))
    assert pairs.read(0).condition.shape == (16, 24, 3)
    with pytest.raises(BadImage, match="not stretched"):
        pairs.read(1)


def test_what_is_held_out_is_decided_by_content(tmp_path: Path) -> None:
    pairs = open_pairs(str(controlnet(tmp_path, 40, same=12)))
    train, held = split(pairs, 3)
    keys = [train.key(i) for i in range(len(train))], [held.key(i) for i in range(len(held))]
    assert len(held) == 3 and sorted(keys[0] + keys[1]) == sorted(pairs.key(i) for i in range(40))
    shown = [{p.target_digest(i) for i in range(len(p))} for p in (train, held)]
    assert not shown[0] & shown[1]
    backwards = split(subset(pairs, range(39, -1, -1)), 3)[1]
    assert {backwards.key(i) for i in range(3)} == set(keys[1])
    assert len(split(pairs, 100)[1]) <= 4 and len(split(pairs, 0)[1]) == 0
    assert len(split(subset(pairs, range(9)), 3)[1]) == 0


def test_what_is_no_data_set_is_said(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK")
    for name in ("missing", "set.zip", "a\0b"):
        with pytest.raises(BadData, match="cannot be opened as a folder"):
            open_pairs(str(tmp_path / name))
    with pytest.raises(BadData, match="no pair that can be used"):
        open_pairs(str(write(tmp_path, {"prompt.json": "{}"})))


def test_a_link_to_a_folder_is_named_where_pairs_are_missed(tmp_path: Path) -> None:
    """Nothing behind it is seen; whoever keeps drawings elsewhere is told why."""
    write(tmp_path / "far", {f"{name}/0.png": png(picture(1)) for name in ("image", "condition")})
    for linked in (("condition",), ("condition", "image")):
        near = tmp_path / f"near{len(linked)}"
        write(near, {f"{name}/0.png": png(picture(0)) for name in {"image", "condition"} - set(linked)} | {"a.md": ""})
        for name in linked:
            (near / name).symlink_to(tmp_path / "far" / name)
        with pytest.raises(BadData, match=rf"Links to folders are not followed \({', '.join(linked)}\)"):
            open_pairs(str(near))
