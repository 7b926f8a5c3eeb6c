"""Where the files of jobs are: an attempt writes into a folder of its own, which is renamed when it is published.

    FOLDER/jobs.sqlite               the jobs (`store.py`)
    FOLDER/work/JOB-ATTEMPT/         what an attempt is writing
    FOLDER/keep/JOB/                 what outlives an attempt: the checkpoints of a training
    FOLDER/results/JOB/              what was published
    FOLDER/thumbs/JOB/               small pictures of it, made when they are asked for
    FOLDER/uploads/                  what clients are sending (`uploads.py`)

The rename comes before the row that says so. A crash in between leaves a folder that no row speaks of; it is removed at
the next start, and the job is done again.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from disegno.core.errors import RequestError
from disegno.serving.store import Job

RESERVE_BYTES = 256 * 2**20  # less room on the disk than this, and no job is taken


@dataclass(frozen=True)
class Files:
    """The folders of one server."""

    root: Path

    def work(self, job: Job) -> Path:
        """Return the folder that this attempt writes."""
        return self.root / "work" / f"{job.id}-{job.attempts}"

    def keep(self, job: Job) -> Path:
        """Return the folder that outlives an attempt."""
        return self.root / "keep" / job.id

    def result(self, job_id: str) -> Path:
        """Return the folder of what was published."""
        return self.root / "results" / job_id

    def thumbs(self, job_id: str) -> Path:
        """Return the folder of a result's small pictures."""
        return self.root / "thumbs" / job_id

    @property
    def uploads(self) -> Path:
        """The folder of what clients are sending."""
        return self.root / "uploads"

    def prepare(self) -> None:
        """Make the folders. Raises RequestError where that cannot be."""
        try:
            for name in ("work", "keep", "results", "thumbs", "uploads"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"The server's folder {self.root} cannot be made ({error.strerror}).") from error

    def publish(self, job: Job) -> None:
        """Rename what the attempt wrote to where results are; durable when this returns. May be done again."""
        target, work = self.result(job.id), self.work(job)
        if work.exists() or not target.exists():
            shutil.rmtree(target, ignore_errors=True)  # of an attempt that was renamed and never published
            work.rename(target)
        sync_folder(target.parent)

    def discard(self, job: Job) -> None:
        """Remove what an attempt wrote."""
        shutil.rmtree(self.work(job), ignore_errors=True)

    def kept_bytes(self) -> dict[str, int]:
        """Return how much outlives the attempts of each job that keeps something."""
        folders = list((self.root / "keep").iterdir())
        return {folder.name: sum(_size(path) for path in folder.rglob("*")) for folder in folders}

    def drop_kept(self, job: Job) -> None:
        """Remove what outlived the attempts."""
        shutil.rmtree(self.keep(job), ignore_errors=True)

    def forget(self, job_id: str) -> None:
        """Remove everything of a job."""
        shutil.rmtree(self.result(job_id), ignore_errors=True)
        shutil.rmtree(self.root / "keep" / job_id, ignore_errors=True)
        shutil.rmtree(self.thumbs(job_id), ignore_errors=True)

    def sweep(self, published: set[str], running: set[str]) -> None:
        """Remove what a dead server left: work, results that no row speaks of, and what was kept for ended jobs."""
        shutil.rmtree(self.root / "work", ignore_errors=True)
        (self.root / "work").mkdir(exist_ok=True)
        for name, wanted in (("results", published), ("thumbs", published), ("keep", running)):
            for folder in (self.root / name).iterdir():
                if folder.name not in wanted:
                    shutil.rmtree(folder, ignore_errors=True)

    def has_room(self) -> bool:
        """Return whether the disk has room for more results."""
        return self.free_bytes() > RESERVE_BYTES

    def free_bytes(self) -> int:
        """Return how much room the disk has."""
        return shutil.disk_usage(self.root).free


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # it is gone meanwhile: a training that runs removes old checkpoints
        return 0


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
