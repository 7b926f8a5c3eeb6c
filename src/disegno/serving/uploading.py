"""`/v1/uploads`: large files in parts, before a job takes them."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from disegno.serving.app import Door, jobs_of, render_plainly
from disegno.serving.faults import ErrorView, documented
from disegno.serving.guard import owner_of
from disegno.serving.uploads import NewUpload, UploadView

router = APIRouter(prefix="/v1", responses=documented(ErrorView))
UploadId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="The upload's id.")]
_BYTES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/uploads", status_code=201, tags=["uploads"])
async def upload_open(body: NewUpload, request: Request) -> UploadView:
    """Begin an upload. It is forgotten a day after its last part."""
    return await asyncio.to_thread(jobs_of(request).uploads.open, body.num_bytes, owner_of(request))


@router.get("/uploads/{upload_id}", tags=["uploads"])
async def upload_look(upload_id: UploadId, request: Request) -> UploadView:
    """See how much has come, to go on after a lost connection."""
    return await asyncio.to_thread(jobs_of(request).uploads.look, upload_id, owner_of(request))


@router.put("/uploads/{upload_id}", tags=["uploads"], openapi_extra=_BYTES)
async def upload_add(
    upload_id: UploadId, request: Request, at: Annotated[int, Query(ge=0, description="Where in the file it begins.")]
) -> UploadView:
    """Send the next part, as it is. The same part again does no harm."""
    body = await request.body()
    return await asyncio.to_thread(jobs_of(request).uploads.add, upload_id, at, body, owner_of(request))


@router.delete("/uploads/{upload_id}", status_code=204, tags=["uploads"])
async def upload_drop(upload_id: UploadId, request: Request) -> None:
    """Remove an upload."""
    await asyncio.to_thread(jobs_of(request).uploads.drop, upload_id, owner_of(request))


DOOR = Door(router, ("/v1/uploads",), render_plainly)
