"""How far a task is, as A1111 tells it: for all at /sdapi/v1/progress, for one task at /internal/progress."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from disegno.serving.a1111.coerce import Json

TaskState = Literal["queued", "running", "completed"]


@dataclass(frozen=True)
class Task:
    """One request of a client on its way.

    `job_count`: its iterations, twice as many with a hires pass; `job_no`: how many of them are done; `started`: in
    seconds, as `now` is; `preview`: a data URI; `previews`: how many there have been.
    """

    id: str
    title: str
    state: TaskState
    job_count: int = 1
    job_no: int = 0
    step: int = 0
    num_steps: int = 0
    started: float = 0.0
    timestamp: str = "0"
    stage: str = ""
    preview: str | None = None
    previews: int = 0
    interrupted: bool = False
    skipped: bool = False

    @property
    def share(self) -> float:
        """Return how much is done, from 0 to 1. A1111 parity: a running task has done a hundredth."""
        if self.state != "running":
            return 1.0 if self.state == "completed" else 0.0
        step = self.step / self.num_steps if self.num_steps else 0.0
        return min(0.01 + (self.job_no + step) / max(self.job_count, 1), 1.0)

    def seconds_left(self, now: float) -> float:
        """Return how much longer it takes, if it goes on as it went."""
        return max((now - self.started) * (1 / self.share - 1), 0.0) if self.share > 0 else 0.0


def _state(task: Task | None) -> dict[str, Json]:
    return {
        "skipped": task is not None and task.skipped,
        "interrupted": task is not None and task.interrupted,
        "stopping_generation": False,
        "job": task.title if task else "",
        "job_count": task.job_count if task else 0,
        "job_timestamp": task.timestamp if task else "0",
        "job_no": task.job_no if task else 0,
        "sampling_step": task.step if task else 0,
        "sampling_steps": task.num_steps if task else 0,
    }


def overall(task: Task | None, now: float, with_image: bool = True) -> dict[str, Json]:
    """Return the answer of GET progress: of the task that runs, or of none."""
    preview = task.preview.partition(",")[2] if task and task.preview and with_image else None
    return {
        "progress": task.share if task else 0.0,
        "eta_relative": task.seconds_left(now) if task else 0.0,
        "state": _state(task),
        "current_image": preview,
        "textinfo": task.stage or None if task else None,
    }


def of_task(tasks: Sequence[Task], task_id: str, seen: int, with_preview: bool, now: float) -> dict[str, Json]:
    """Return the answer of POST /internal/progress. `tasks`: in order; `seen`: the last preview known."""
    task = next((task for task in tasks if task.id == task_id), None)
    waiting = [other.id for other in tasks if other.state == "queued"]
    body: dict[str, Json] = {
        "active": task is not None and task.state == "running",
        "queued": task is not None and task.state == "queued",
        "completed": task is not None and task.state == "completed",
        "progress": task.share if task is not None and task.state == "running" else None,
        "eta": task.seconds_left(now) if task is not None and task.state == "running" else None,
        "live_preview": None,
        "id_live_preview": seen,
        "textinfo": None,
    }
    if task is None or task.state == "completed":
        return body | {"textinfo": "Waiting..."} if task is None else body
    if task.state == "queued":
        place = waiting.index(task_id) + 1
        return body | {"textinfo": f"In queue: {place}/{len(waiting)}" if place else "Waiting..."}
    body["textinfo"] = task.stage or None
    if with_preview and task.preview is not None and task.previews != seen:
        body |= {"live_preview": task.preview, "id_live_preview": task.previews}
    return body


def estimation(tasks: Sequence[Task]) -> dict[str, Json]:
    """Return the answer of GET /queue/status, gradio's: plugins ask it first, whether somebody is there at all."""
    unknown = ("rank", "avg_event_process_time", "avg_event_concurrent_process_time", "rank_eta")
    waiting = sum(task.state == "queued" for task in tasks)
    return {"msg": "estimation", "queue_size": waiting, "queue_eta": 0, **dict.fromkeys(unknown)}


def pending(tasks: Sequence[Task]) -> dict[str, Json]:
    """Return the answer of GET /internal/pending-tasks."""
    waiting: list[Json] = [task.id for task in tasks if task.state == "queued"]
    return {"size": len(waiting), "tasks": waiting}
