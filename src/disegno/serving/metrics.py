"""What Prometheus reads at /metrics. Each server has a registry of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from disegno.serving.store import Job, State

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)


@dataclass
class Metrics:
    """The figures of one server."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        at = self.registry
        self.submitted = Counter("disegno_jobs_submitted", "Jobs that were acknowledged.", ["kind"], registry=at)
        self.refused = Counter("disegno_requests_refused", "Requests that were refused.", ["code"], registry=at)
        self.jobs_ended = Counter("disegno_jobs_ended", "Jobs that ended.", ["kind", "state", "code"], registry=at)
        self.wait = Histogram(
            "disegno_job_wait_seconds", "From submission to begin.", ["kind"], registry=at, buckets=SECONDS
        )
        self.run = Histogram("disegno_job_run_seconds", "From begin to end.", ["kind"], registry=at, buckets=SECONDS)
        self.worker_restarts = Counter("disegno_worker_restarts", "Workers that died.", registry=at)
        self.jobs = Gauge("disegno_jobs", "Jobs that are kept.", ["state"], registry=at)
        self.workers = Gauge("disegno_workers_ready", "Workers that can take jobs.", registry=at)
        self.memory = Gauge("disegno_resident_bytes", "Memory.", ["process"], registry=at)
        self.disk = Gauge("disegno_disk_free_bytes", "Room for results.", registry=at)

    def ended(self, job: Job) -> None:
        """Count a job that has ended."""
        self.jobs_ended.labels(job.kind, job.state, job.failure.code if job.failure else "").inc()
        if job.started is not None and job.ended is not None:
            self.wait.labels(job.kind).observe(max(0.0, job.started - job.created))
            self.run.labels(job.kind).observe(max(0.0, job.ended - job.started))

    def text(self, states: Mapping[str, int], ready: int, free_bytes: int, pids: Mapping[str, int | None]) -> bytes:
        """Return the figures in Prometheus' text format, with what is so right now."""
        for state in get_args(State):
            self.jobs.labels(state).set(states.get(state, 0))
        self.workers.set(ready)
        self.disk.set(free_bytes)
        for name, pid in pids.items():
            self.memory.labels(name).set(resident_bytes(pid))
        return generate_latest(self.registry)


def resident_bytes(pid: int | None) -> int:
    """Return how much memory a process holds; 0 where there is none."""
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid is not None else 0
    except psutil.Error:
        return 0
