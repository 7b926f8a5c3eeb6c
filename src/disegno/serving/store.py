"""The jobs on disk: what was acknowledged is never lost, runs at most twice, and is published once.

One table of jobs, one of their requests. Every transition is one transaction, committed before anybody is told; a
transition from a state that the job is no longer in changes nothing and says so. SQLite keeps a write-ahead log and
syncs at every commit (`synchronous=FULL`); any other database of SQLAlchemy's will do, for one server at a time.
"""

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, Row

from disegno.serving.words import FAILURE, OUTCOME, Failure, Outcome

State = Literal["queued", "paused", "running", "done", "failed", "cancelled"]
WAITING: tuple[State, ...] = ("queued", "paused")
TERMINAL: tuple[State, ...] = ("done", "failed", "cancelled")
MAX_ATTEMPTS = 2
MAX_IDS = 500  # in one statement: a database takes only so many variables (SQLite 250,000, older ones 999)

_META = sa.MetaData()
_JOBS = sa.Table(
    "jobs",
    _META,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("position", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("alone", sa.Boolean, nullable=False, default=False),
    sa.Column("cancelling", sa.Boolean, nullable=False, default=False),
    sa.Column("share", sa.String(1024)),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("ended", sa.Double),
    sa.Column("key", sa.String(255)),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("failure", sa.Text),
    sa.Column("outcome", sa.Text),
    sa.UniqueConstraint("owner", "key", name="one_job_a_key"),
    sa.Index("jobs_by_state", "state", "owner", "position"),
    sa.Index("jobs_by_owner", "owner", "created"),
)
_REQUESTS = sa.Table(
    "requests",
    _META,
    sa.Column("job", sa.String(32), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)


@dataclass(frozen=True)
class Job:
    """One job as it stands. `attempts`: how often it was begun; `alone`: a worker died with it, so it runs alone."""

    id: str
    owner: str
    kind: str
    state: State
    position: float
    attempts: int
    alone: bool
    cancelling: bool
    share: str | None
    created: float
    started: float | None
    ended: float | None
    key: str | None
    digest: str
    num_bytes: int
    failure: Failure | None
    outcome: Outcome | None

    @property
    def terminal(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.state in TERMINAL


@dataclass(frozen=True)
class New:
    """A job to be stored. `key`: the client's own name for it; the same key gives back the same job."""

    owner: str
    kind: str
    body: bytes
    digest: str
    share: str | None
    key: str | None = None


@dataclass(frozen=True)
class Load:
    """How much waits: of one user, of all, and the bytes of all their requests."""

    of_user: int
    queued: int
    num_bytes: int


@dataclass(frozen=True)
class Past:
    """An ended job: whose it was, when it ended, and how many bytes its request and its result's files have."""

    id: str
    owner: str
    end: float
    num_bytes: int


def _job(row: Row[Any]) -> Job:
    fields = dict(row._mapping)  # pyright: ignore[reportPrivateUsage] # SQLAlchemy's documented name
    fields["failure"] = FAILURE.validate_json(fields["failure"]) if fields["failure"] else None
    fields["outcome"] = OUTCOME.validate_json(fields["outcome"]) if fields["outcome"] else None
    return Job(**fields)


def _on_connect(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in (
        "auto_vacuum=INCREMENTAL",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=10000",
        "journal_size_limit=16777216",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class Store:
    """The tables, through one engine. Every method is one transaction; call it from one thread at a time."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = sa.create_engine(url)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _on_connect)
        _META.create_all(self.engine)

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()

    def add(self, new: New) -> tuple[Job, bool]:
        """Return the stored job, and whether it is new: an owner's key names one job for ever."""
        with self.engine.begin() as at:
            if new.key is not None and (found := self._by_key(at, new.owner, new.key)) is not None:
                return found, False
            last = at.execute(sa.select(sa.func.max(_JOBS.c.position))).scalar()
            values: dict[str, Any] = {
                "id": secrets.token_hex(16),
                "owner": new.owner,
                "kind": new.kind,
                "state": "queued",
                "position": (last or 0.0) + 1.0,
                "share": new.share,
                "created": time.time(),
                "key": new.key,
                "digest": new.digest,
                "num_bytes": len(new.body),
            }
            at.execute(sa.insert(_JOBS).values(values))
            at.execute(sa.insert(_REQUESTS).values(job=values["id"], body=new.body))
            job = self._get(at, values["id"])
        assert job is not None
        return job, True

    def _by_key(self, at: Connection, owner: str, key: str) -> Job | None:
        row = at.execute(sa.select(_JOBS).where(_JOBS.c.owner == owner, _JOBS.c.key == key)).first()
        return None if row is None else _job(row)

    def _get(self, at: Connection, job_id: str) -> Job | None:
        row = at.execute(sa.select(_JOBS).where(_JOBS.c.id == job_id)).first()
        return None if row is None else _job(row)

    def get(self, job_id: str) -> Job | None:
        """Return the job as it stands."""
        with self.engine.connect() as at:
            return self._get(at, job_id)

    def by_key(self, owner: str, key: str) -> Job | None:
        """Return the owner's job of this key."""
        with self.engine.connect() as at:
            return self._by_key(at, owner, key)

    def request(self, job_id: str) -> bytes | None:
        """Return what was asked, as it was stored."""
        with self.engine.connect() as at:
            return at.execute(sa.select(_REQUESTS.c.body).where(_REQUESTS.c.job == job_id)).scalar()

    def of_owner(self, owner: str, states: Sequence[str], limit: int, before: float | None) -> list[Job]:
        """Return an owner's jobs, the newest first; `before`: only those that were made before this time."""
        query = sa.select(_JOBS).where(_JOBS.c.owner == owner).order_by(_JOBS.c.created.desc()).limit(limit)
        if states:
            query = query.where(_JOBS.c.state.in_(states))
        if before is not None:
            query = query.where(_JOBS.c.created < before)
        with self.engine.connect() as at:
            return [_job(row) for row in at.execute(query)]

    def load(self, owner: str) -> Load:
        """Return how much waits."""
        waiting = _JOBS.c.state.in_(WAITING)
        counts = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_JOBS.c.num_bytes), 0)).where(waiting)
        with self.engine.connect() as at:
            queued, num_bytes = at.execute(counts).one()
            mine = at.execute(sa.select(sa.func.count()).where(waiting, _JOBS.c.owner == owner)).scalar() or 0
        return Load(mine, queued, int(num_bytes))

    def heads(self, kinds: Sequence[str]) -> list[Job]:
        """Return, for every owner with jobs of these kinds in the queue, the next one."""
        queued = sa.and_(_JOBS.c.state == "queued", _JOBS.c.kind.in_(kinds))
        firsts = (
            sa.select(_JOBS.c.owner, sa.func.min(_JOBS.c.position).label("position"))
            .where(queued)
            .group_by(_JOBS.c.owner)
            .subquery()
        )
        match = sa.and_(_JOBS.c.owner == firsts.c.owner, _JOBS.c.position == firsts.c.position, queued)
        with self.engine.connect() as at:
            return [_job(row) for row in at.execute(sa.select(_JOBS).join(firsts, match))]

    # ---- transitions: each says whether the job was still in the state that it starts from

    def _move(self, job_id: str, states: Iterable[State], *conditions: Any, **values: Any) -> Job | None:
        """Return the job after the change, or None where it was not in one of these states."""
        update = sa.update(_JOBS).where(_JOBS.c.id == job_id, _JOBS.c.state.in_(tuple(states)), *conditions)
        with self.engine.begin() as at:
            if at.execute(update.values(**values)).rowcount != 1:
                return None
            return self._get(at, job_id)

    def claim(self, job_id: str) -> Job | None:
        """Begin a queued job: counted before it is begun, so that a crash cannot make a third time out of it."""
        return self._move(
            job_id, ("queued",), state="running", started=time.time(), attempts=_JOBS.c.attempts + 1, ended=None
        )

    def publish(self, job_id: str, attempt: int, outcome: Outcome) -> Job | None:
        """End a running job well; only the attempt that is running now can."""
        text = OUTCOME.dump_json(outcome).decode()
        mine = _JOBS.c.attempts == attempt
        return self._move(job_id, ("running",), mine, state="done", outcome=text, ended=time.time(), cancelling=False)

    def fail(self, job_id: str, failure: Failure) -> Job | None:
        """End a job that cannot be carried out."""
        text = FAILURE.dump_json(failure).decode()
        states: tuple[State, ...] = ("running", *WAITING)
        return self._move(job_id, states, state="failed", failure=text, ended=time.time(), cancelling=False)

    def cancel(self, job_id: str, states: Iterable[State] = ("queued", "paused", "running")) -> Job | None:
        """End a job because its owner wants so."""
        return self._move(job_id, states, state="cancelled", ended=time.time(), cancelling=False)

    def ask_to_cancel(self, job_id: str) -> Job | None:
        """Remember that a running job is to be cancelled, should the server die before it is."""
        return self._move(job_id, ("running",), cancelling=True)

    def again(self, job_id: str) -> Job | None:
        """Put a job whose worker died back into the queue; it will run alone. None when it has had its attempts."""
        return self._move(job_id, ("running",), _JOBS.c.attempts < MAX_ATTEMPTS, state="queued", alone=True)

    def withdraw(self, job_id: str) -> Job | None:
        """Put a job that was stopped cleanly back into the queue; that attempt does not count."""
        return self._move(job_id, ("running",), state="queued", attempts=_JOBS.c.attempts - 1, started=None)

    def pause(self, job_id: str) -> Job | None:
        """Let a queued job wait until it is resumed."""
        return self._move(job_id, ("queued",), state="paused")

    def park(self, job_id: str) -> Job | None:
        """Let a running job that was saved wait until it is resumed; that attempt does not count."""
        return self._move(job_id, ("running",), state="paused", attempts=_JOBS.c.attempts - 1, started=None)

    def resume(self, job_id: str) -> Job | None:
        """Let a paused job take its turn again."""
        return self._move(job_id, ("paused",), state="queued")

    def revive(self, job_id: str) -> Job | None:
        """Put a job that was cancelled or failed back into the queue, with all its attempts before it."""
        fresh: dict[str, Any] = {"attempts": 0, "failure": None, "started": None, "ended": None}
        return self._move(job_id, ("cancelled", "failed"), state="queued", **fresh)

    def reorder(self, job_id: str, first: bool) -> Job | None:
        """Make a waiting job the first or the last of its owner's."""
        owner = sa.select(_JOBS.c.owner).where(_JOBS.c.id == job_id).scalar_subquery()
        edge = sa.func.min(_JOBS.c.position) - 1.0 if first else sa.func.max(_JOBS.c.position) + 1.0
        with self.engine.connect() as at:
            query = sa.select(edge).where(_JOBS.c.owner == owner, _JOBS.c.state.in_(WAITING))
            position = at.execute(query).scalar()
        return None if position is None else self._move(job_id, WAITING, position=position)

    def swap(self, job_id: str, earlier: bool, kinds: Sequence[str]) -> list[Job]:
        """Return a waiting job and the one of its owner's, of these kinds, with which it changed places.

        Only the job where it is the first or the last already; nothing where it does not wait.
        """
        with self.engine.begin() as at:
            job = self._get(at, job_id)
            if job is None or job.state not in WAITING:
                return []
            place = _JOBS.c.position
            beside = place < job.position if earlier else place > job.position
            mine = sa.and_(_JOBS.c.owner == job.owner, _JOBS.c.state.in_(WAITING), _JOBS.c.kind.in_(kinds), beside)
            order = place.desc() if earlier else place.asc()
            other = at.execute(sa.select(_JOBS).where(mine).order_by(order).limit(1)).first()
            if other is None:
                return [job]
            for moved, position in ((job.id, other.position), (other.id, job.position)):
                at.execute(sa.update(_JOBS).where(_JOBS.c.id == moved).values(position=position))
            found = (self._get(at, moved) for moved in (job.id, other.id))
            return [each for each in found if each is not None]

    def running(self) -> list[Job]:
        """Return the jobs that are on their way, or were when the server died."""
        with self.engine.connect() as at:
            return [_job(row) for row in at.execute(sa.select(_JOBS).where(_JOBS.c.state == "running"))]

    # ---- retention

    def ended(self) -> list[Past]:
        """Return what is to be known of every ended job, the oldest first."""
        query = (
            sa.select(_JOBS.c.id, _JOBS.c.owner, _JOBS.c.ended, _JOBS.c.num_bytes, _JOBS.c.outcome)
            .where(_JOBS.c.state.in_(TERMINAL))
            .order_by(_JOBS.c.ended)
        )
        with self.engine.connect() as at:
            rows = at.execute(query).all()
        return [Past(row.id, row.owner, row.ended, row.num_bytes + _outcome_bytes(row.outcome)) for row in rows]

    def known(self) -> set[str]:
        """Return the id of every job that ended well: whose files are to be kept."""
        with self.engine.connect() as at:
            return set(at.execute(sa.select(_JOBS.c.id).where(_JOBS.c.state == "done")).scalars())

    def unfinished(self) -> set[str]:
        """Return the id of every job that may still be carried out, or resumed: what it kept may be wanted."""
        states = (*WAITING, "running", "failed", "cancelled")
        with self.engine.connect() as at:
            return set(at.execute(sa.select(_JOBS.c.id).where(_JOBS.c.state.in_(states))).scalars())

    def forget(self, job_ids: Sequence[str]) -> None:
        """Remove ended jobs, and give their room back."""
        for i in range(0, len(job_ids), MAX_IDS):
            some = _JOBS.c.id.in_(job_ids[i : i + MAX_IDS])
            with self.engine.begin() as at:
                at.execute(sa.delete(_JOBS).where(some, _JOBS.c.state.in_(TERMINAL)))
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as at:
                at.exec_driver_sql("PRAGMA incremental_vacuum")

    def count(self) -> dict[str, int]:
        """Return how many jobs are in each state."""
        with self.engine.connect() as at:
            rows = at.execute(sa.select(_JOBS.c.state, sa.func.count()).group_by(_JOBS.c.state))
            return {str(row[0]): int(row[1]) for row in rows}


def _outcome_bytes(text: str | None) -> int:
    return sum(file["num_bytes"] for file in json.loads(text)["files"]) if text else 0
