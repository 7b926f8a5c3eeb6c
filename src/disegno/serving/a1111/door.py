"""The door: all routes of A1111's API and of its ControlNet extension, and how an error looks to their clients."""

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from disegno.serving.a1111 import (
    routes_controlnet,
    routes_extras,
    routes_generate,
    routes_lists,
    routes_options,
)
from disegno.serving.a1111.errors import error_body
from disegno.serving.app import Door
from disegno.serving.faults import Refused

ROUTES = (routes_generate, routes_lists, routes_options, routes_extras, routes_controlnet)

router = APIRouter()
for part in ROUTES:
    router.include_router(part.router)


def render(refused: Refused) -> Response:
    """Return the error in A1111's shape."""
    return JSONResponse(error_body(refused), refused.status, dict(refused.headers))


DOOR = Door(router, ("/sdapi/", "/controlnet/", "/internal/", "/queue/", "/login_check"), render)
