"""Uploads in parts: in order, once, one's own, and no more than is allowed."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from disegno.serving import uploads as module
from disegno.serving.faults import Refused
from disegno.serving.files import Files
from disegno.serving.settings import Limits
from disegno.serving.uploads import PART_BYTES, Uploads

pytestmark = pytest.mark.unit


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    files = Files(tmp_path)
    files.prepare()
    return Uploads(files, Limits(upload_bytes=1000, uploads_per_user=2))


def _refused(call: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.status, caught.value.code


def test_parts_become_a_file(uploads: Uploads) -> None:
    new = uploads.open(6, "anna")
    assert (new.received, new.part_bytes) == (0, PART_BYTES)
    assert uploads.add(new.id, 0, b"abc", "anna").received == 3
    assert not (uploads.files.uploads / new.id).exists()
    assert uploads.add(new.id, 0, b"abc", "anna").received == 3  # the answer was lost, and it is sent again
    assert _refused(lambda: uploads.add(new.id, 4, b"ef", "anna")) == (409, "wrong_part")
    assert uploads.add(new.id, 3, b"def", "anna").received == 6
    assert uploads.add(new.id, 3, b"def", "anna").received == 6
    assert (uploads.files.uploads / new.id).read_bytes() == b"abcdef"
    again = Uploads(uploads.files, uploads.limits)  # after a restart
    assert again.look(new.id, "anna").received == 6


def test_others_see_nothing_of_it(uploads: Uploads) -> None:
    new = uploads.open(6, "anna")
    for call in (
        lambda: uploads.look(new.id, "ben"),
        lambda: uploads.add(new.id, 0, b"abc", "ben"),
        lambda: uploads.drop(new.id, "ben"),
        lambda: uploads.look("0" * 32, "anna"),
    ):
        assert _refused(call) == (404, "not_found")
    uploads.drop(new.id, "anna")
    assert list(uploads.files.uploads.iterdir()) == []


def test_too_much_is_refused(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _refused(lambda: uploads.open(1001, "anna")) == (422, "over_limit")
    new = uploads.open(6, "anna")
    assert _refused(lambda: uploads.add(new.id, 0, bytes(7), "anna")) == (422, "wrong_part")
    uploads.open(6, "anna")
    assert _refused(lambda: uploads.open(6, "anna")) == (429, "too_many_uploads")
    uploads.open(6, "ben")
    monkeypatch.setattr(Files, "free_bytes", lambda self: 1000)
    assert _refused(lambda: uploads.open(6, "carl")) == (507, "no_room")


def test_what_nobody_goes_on_with_is_removed(uploads: Uploads) -> None:
    old, used, new = uploads.open(3, "anna"), uploads.open(3, "anna"), uploads.open(3, "ben")
    uploads.add(used.id, 0, b"abc", "anna")
    (uploads.files.uploads / used.id).unlink()  # a job has taken it
    past = time.time() - module.KEEP_SECONDS - 1
    os.utime(uploads.files.uploads / f"{old.id}.part", (past, past))
    uploads.sweep()
    assert {path.stem for path in uploads.files.uploads.iterdir()} == {new.id}
