"""The page's own files, read once. Everything that it shows and does comes from `/v1`."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from fastapi.responses import Response

from disegno.serving.app import Door, render_plainly
from disegno.serving.faults import Refused

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "webmanifest": "application/manifest+json",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """One file of the page."""

    content: bytes
    media_type: str
    etag: str


def _found(folder: Traversable, prefix: str = "") -> dict[str, Asset]:
    assets: dict[str, Asset] = {}
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            assets |= _found(entry, f"{name}/")
        elif media_type := MEDIA_TYPES.get(name.rpartition(".")[2]):
            content = entry.read_bytes()
            assets[name] = Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return assets


@cache
def assets() -> dict[str, Asset]:
    """Return the page's files by name: names are looked up, never joined to a path."""
    return _found(files("disegno.ui").joinpath("static"))


def _answer(name: str, request: Request) -> Response:
    asset = assets().get(name)
    if asset is None:
        raise Refused(404, "not_found", "The page has no such file.")
    headers = {
        "ETag": asset.etag,
        "Cache-Control": "no-cache",
    }  # asked for again, and answered 304 while it is the same
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


@router.get("/")
async def page(request: Request) -> Response:
    """Give the page."""
    return _answer("index.html", request)


@router.get("/ui/{name:path}")
async def asset(name: str, request: Request) -> Response:
    """Give one of its files."""
    return _answer(name, request)


DOOR = Door(router, ("/ui",), render_plainly)
