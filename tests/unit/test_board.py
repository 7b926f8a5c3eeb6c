"""Who looks on at all jobs of one owner: what they are told, and what they are not."""

from dataclasses import replace

import pytest

from disegno.serving.board import MAX_NEWS, Board
from disegno.serving.store import Job
from disegno.serving.wire import Looked, Moved
from disegno.serving.words import LookView

pytestmark = pytest.mark.unit


def _job(number: int, owner: str = "anna", **fields: object) -> Job:
    job = Job(
        id=f"{number:032x}", owner=owner, kind="generate", state="queued", position=1.0, attempts=0, alone=False,
        cancelling=False, share=None, created=1.0, started=None, ended=None, key=None, digest="", num_bytes=0,
        failure=None, outcome=None,
    )  # fmt: skip
    return replace(job, **fields)


def test_an_onlooker_is_told_of_its_owners_jobs_only() -> None:
    board = Board()
    mine, other = _job(1, state="running"), _job(2, owner="ben", state="running")
    with board.looking_on("anna") as onlooker:
        for job in (mine, other):
            board.change(job)
            board.move(Moved(job.id, 1, 4, "sampling"))
            board.look(Looked(job.id, LookView(1, None, {}, "early", "")))
        board.forget(other.id, "ben")
        news, gone = onlooker.take()
        assert [type(each) for each in news] == [Job, Moved, Looked] and gone == []
        assert {each.id if isinstance(each, Job) else each.job for each in news} == {mine.id}
        assert not onlooker.changed.is_set() and onlooker.take() == ([], [])
    board.change(mine)
    assert not onlooker.changed.is_set()


def test_only_the_last_of_a_jobs_news_is_kept() -> None:
    board, job = Board(), _job(1, state="running")
    with board.looking_on("anna") as onlooker:
        board.change(job)
        for step in range(5):
            board.move(Moved(job.id, step, 4, "sampling"))
        assert [each.step for each in onlooker.take()[0] if isinstance(each, Moved)] == [4]
        board.move(Moved(job.id, 4, 4, "sampling"))
        board.change(replace(job, state="done"))
        assert [each.state for each in onlooker.take()[0] if isinstance(each, Job)] == ["done"]
        board.forget(job.id, "anna")
        assert onlooker.take() == ([], [job.id])


def test_one_who_is_too_slow_is_let_go() -> None:
    board = Board()
    with board.looking_on("anna") as onlooker:
        for number in range(MAX_NEWS):
            board.change(_job(number))
        assert not onlooker.lost
        board.change(_job(MAX_NEWS))
        assert onlooker.lost
    with board.looking_on("anna") as onlooker:
        board.close()
        assert onlooker.changed.is_set()
