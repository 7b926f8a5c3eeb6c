"""`/v1/jobs/ID/thumbnails/NAME`: a result's picture made small when it is first asked for, and kept."""

import asyncio
import secrets
from pathlib import Path
from threading import BoundedSemaphore

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from PIL import Image

from disegno.serving.app import Door, jobs_of, render_plainly
from disegno.serving.faults import ErrorView, Refused, documented
from disegno.serving.guard import owner_of
from disegno.serving.native import FOR_EVER, JobId

SIDE_PX = 320
QUALITY = 80
_AT_ONCE = BoundedSemaphore(2)  # a picture of 64 million pixels takes 0.2 GB while it is made small

router = APIRouter(prefix="/v1", responses=documented(ErrorView))


@router.get("/jobs/{job_id}/thumbnails/{name}", tags=["jobs"], response_class=FileResponse)
async def thumbnail(job_id: JobId, name: str, request: Request) -> Response:
    """Get one picture of a job's result as a JPEG, at most 320 pixels wide and high."""
    jobs = jobs_of(request)
    job = await jobs.get(job_id, owner=owner_of(request))
    file, source = jobs.file(job, name), jobs.path(job, name)
    if not file.media_type.startswith("image/"):
        raise Refused(404, "not_found", "This file is no picture.", "name")
    target = jobs.files.thumbs(job.id) / f"{file.name}.jpg"
    await asyncio.to_thread(make_small, source, target)
    return FileResponse(target, media_type="image/jpeg", headers=FOR_EVER | {"ETag": f'"{file.sha256}-{SIDE_PX}"'})


def make_small(source: Path, target: Path) -> None:
    """Write the picture small, where it is not there yet. Raises Refused where it cannot be read."""
    with _AT_ONCE:
        if target.exists():
            return
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            with Image.open(source) as opened:
                small = opened.convert("RGB")
            small.thumbnail((SIDE_PX, SIDE_PX))
            target.parent.mkdir(parents=True, exist_ok=True)
            small.save(temporary, format="JPEG", quality=QUALITY, optimize=True)
            temporary.replace(target)  # not brought to the disk: it is made again where it is lost
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise Refused(404, "not_found", "The picture cannot be made small.", "name") from error


DOOR = Door(router, ("/v1/jobs",), render_plainly)
