"""The jobs on disk: every transition starts from the right state only, twice begun is the most, order is fair."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from disegno.serving.kinds import kinds_of
from disegno.serving.store import Job, New, Past, Store
from disegno.serving.views import view
from disegno.serving.words import Failure, Outcome, StoredFile
from kit.postgres import postgres

pytestmark = pytest.mark.unit

OUTCOME = Outcome((StoredFile("0.png", "image", "image/png", 7, "ab"),), ("a warning",), {"seeds": ["1"]})
FAILURE = Failure("bad_image", "no picture")
KINDS = kinds_of("draw")


@pytest.fixture(scope="module")
def cluster() -> Iterator[sa.Engine]:
    """Return a way into a PostgreSQL that is there for these tests."""
    with postgres() as url:
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        yield engine
        engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    cluster: sa.Engine = request.getfixturevalue("cluster")
    name = f"jobs_{secrets.token_hex(8)}"
    with cluster.connect() as at:
        at.execute(sa.text(f"CREATE DATABASE {name}"))
    return cluster.url.set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


def _add(store: Store, owner: str = "anna", key: str | None = None) -> Job:
    return store.add(New(owner, "generate", b'{"prompt":"a cat"}', "digest", "diorama", key))[0]


def test_every_connection_to_sqlite_syncs_at_every_commit(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    for _ in range(2):
        with store.engine.connect() as at:
            assert at.execute(sa.text("PRAGMA synchronous")).scalar() == 2
            assert at.execute(sa.text("PRAGMA journal_mode")).scalar() == "wal"
            assert at.execute(sa.text("PRAGMA foreign_keys")).scalar() == 1
        store.close()


def test_what_was_added_is_there_for_the_next_process(store: Store, url: str) -> None:
    job = _add(store)
    again = Store(url)
    assert again.get(job.id) == job and again.request(job.id) == b'{"prompt":"a cat"}'
    again.close()


def test_a_key_names_one_job_of_one_owner(store: Store) -> None:
    first, new = store.add(New("anna", "generate", b"{}", "digest", None, "k"))
    assert new and store.add(New("anna", "generate", b"{}", "digest", None, "k")) == (first, False)
    assert store.add(New("ben", "generate", b"{}", "digest", None, "k"))[1]


def test_a_job_is_begun_twice_at_most(store: Store) -> None:
    job = _add(store)
    for attempt in (1, 2):
        running = store.claim(job.id)
        assert running is not None and running.attempts == attempt
        assert store.claim(job.id) is None
        back = store.again(job.id)
        assert (back is None) == (attempt == 2)
    assert back is None and store.fail(job.id, FAILURE) is not None
    ended = store.get(job.id)
    assert ended is not None and ended.state == "failed" and ended.failure == FAILURE


def test_a_job_that_was_withdrawn_has_its_attempts(store: Store) -> None:
    job = _add(store)
    for _ in range(5):
        assert store.claim(job.id) is not None
        back = store.withdraw(job.id)
        assert back is not None and back.attempts == 0 and not back.alone


def test_only_the_attempt_that_runs_publishes_and_only_once(store: Store) -> None:
    job = _add(store)
    store.claim(job.id)
    assert store.publish(job.id, 2, OUTCOME) is None
    done = store.publish(job.id, 1, OUTCOME)
    assert done is not None and done.state == "done" and done.outcome == OUTCOME
    assert store.publish(job.id, 1, OUTCOME) is None
    assert store.cancel(job.id) is None and store.fail(job.id, FAILURE) is None


def test_a_cancelled_job_is_not_begun(store: Store) -> None:
    job = _add(store)
    assert store.cancel(job.id) is not None
    assert store.claim(job.id) is None and store.heads(KINDS) == []


def test_the_heads_are_each_owners_first(store: Store) -> None:
    anna = [_add(store, "anna") for _ in range(3)]
    ben = [_add(store, "ben") for _ in range(2)]
    heads = lambda: {job.id for job in store.heads(KINDS)}  # noqa: E731
    assert heads() == {anna[0].id, ben[0].id}
    store.pause(anna[0].id)
    assert heads() == {anna[1].id, ben[0].id}
    store.resume(anna[0].id)
    store.reorder(anna[2].id, first=True)
    store.reorder(ben[0].id, first=False)
    assert heads() == {anna[2].id, ben[1].id}


def test_jobs_that_wait_change_places_with_their_owners_next(store: Store) -> None:
    anna = [_add(store, "anna") for _ in range(3)]
    ben = _add(store, "ben")
    lesson, _ = store.add(New("anna", "teach", b"{}", "digest", None))
    order = lambda: sorted(anna, key=lambda job: getattr(store.get(job.id), "position", 0.0))  # noqa: E731
    assert [job.id for job in store.swap(anna[2].id, True, KINDS)] == [anna[2].id, anna[1].id]
    assert order() == [anna[0], anna[2], anna[1]]
    assert [job.id for job in store.swap(anna[1].id, False, KINDS)] == [anna[1].id]  # only a training comes after it
    assert [job.id for job in store.swap(ben.id, True, KINDS)] == [ben.id]
    assert store.swap(lesson.id, True, kinds_of("school"))[0].position == lesson.position
    store.claim(anna[0].id)
    assert store.swap(anna[0].id, False, KINDS) == [] and store.swap("none", True, KINDS) == []
    assert [job.id for job in store.swap(anna[2].id, True, KINDS)] == [anna[2].id]  # what runs keeps its place


def test_a_running_job_that_was_saved_waits(store: Store) -> None:
    job = _add(store)
    assert store.park(job.id) is None
    store.claim(job.id)
    parked = store.park(job.id)
    assert parked is not None and (parked.state, parked.attempts, parked.started) == ("paused", 0, None)
    again = store.resume(job.id)
    assert again is not None and again.state == "queued"


def test_each_lane_has_heads_of_its_own(store: Store) -> None:
    long, picture = New("anna", "teach", b"{}", "digest", None), _add(store)
    job, _ = store.add(long)
    assert [head.id for head in store.heads(kinds_of("school"))] == [job.id]
    assert [head.id for head in store.heads(KINDS)] == [picture.id]


def test_what_ended_early_can_have_its_attempts_again(store: Store) -> None:
    job = _add(store)
    assert store.revive(job.id) is None
    store.claim(job.id)
    store.fail(job.id, FAILURE)
    again = store.revive(job.id)
    assert again is not None and (again.state, again.attempts, again.failure) == ("queued", 0, None)
    store.claim(job.id)
    store.publish(job.id, 1, OUTCOME)
    assert store.revive(job.id) is None


def test_load_counts_what_waits(store: Store) -> None:
    for _ in range(3):
        _add(store, "anna")
    _add(store, "ben")
    store.claim(store.heads(KINDS)[0].id)
    load = store.load("ben")
    assert (load.of_user, load.queued, load.num_bytes) in ((1, 3, 54), (0, 3, 54))


def test_forgotten_jobs_leave_nothing(store: Store) -> None:
    job, other = _add(store), _add(store)
    store.claim(job.id)
    store.publish(job.id, 1, OUTCOME)
    assert store.ended() == [Past(job.id, job.owner, store.get(job.id).ended, 18 + 7)]
    assert store.known() == {job.id} and store.unfinished() == {other.id}
    store.forget([job.id, other.id])
    assert store.get(job.id) is None and store.request(job.id) is None
    assert store.get(other.id) is not None and store.request(other.id), "a job that waits is not forgotten"
    assert store.count() == {"queued": 1}


def test_the_owners_jobs_are_listed_newest_first(store: Store) -> None:
    jobs = [_add(store) for _ in range(4)]
    _add(store, "ben")
    listed = store.of_owner("anna", (), 3, None)
    assert [job.id for job in listed] == [job.id for job in jobs[:0:-1]]
    assert [job.id for job in store.of_owner("anna", (), 9, listed[-1].created)] == [jobs[0].id]
    assert store.of_owner("anna", ("done",), 9, None) == []


def test_any_number_of_jobs_is_forgotten(store: Store) -> None:
    job = _add(store)
    store.cancel(job.id)
    told: list[int] = []
    event.listen(store.engine, "before_cursor_execute", lambda *at: told.append(len(at[3])))
    store.forget([*(f"{number:032x}" for number in range(2000)), job.id])
    assert store.get(job.id) is None and max(told) < 999  # variables that any SQLite takes


def test_a_files_address_is_one_whatever_its_name_is(store: Store) -> None:
    job = _add(store)
    store.claim(job.id)
    odd = Outcome((StoredFile("my #1 100%.safetensors", "weights", "application/octet-stream", 1, ""),))
    published = store.publish(job.id, 1, odd)
    assert published is not None
    told = view(published).result
    assert told is not None and told.files[0].url == f"/v1/jobs/{job.id}/files/my%20%231%20100%25.safetensors"
