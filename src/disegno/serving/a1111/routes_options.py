"""A person's settings: read, and set. They are the defaults of that person's requests, and nobody else's."""

import json

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from disegno.core.errors import RequestError
from disegno.serving.a1111.front import TimedRoute, asker, body_of
from disegno.serving.a1111.generation import CHECKPOINT, find_model
from disegno.serving.a1111.house import House, Named, find_named
from disegno.serving.a1111.options import all_settings, read_settings

router = APIRouter(route_class=TimedRoute, include_in_schema=False)
WARNINGS_HEADER = "X-Disegno-Warnings"


def checkpoint(house: House) -> Named:
    """Return the model that the settings name, also where it is gone; the first where they name none."""
    name = str(house.settings.get(CHECKPOINT) or "")
    try:
        return find_named("model", name, house.models) if name else house.models[0]
    except RequestError:
        return Named(name)


@router.get("/sdapi/v1/options")
async def options(request: Request) -> Response:
    """Every setting of A1111, with its value here."""
    front, owner = asker(request)
    model = checkpoint(await front.house(owner))
    return JSONResponse(all_settings(front.settings_of(owner), model.title, model.sha256))


@router.post("/sdapi/v1/options")
async def set_options(request: Request) -> Response:
    """Set some settings; what has no effect here is said in a header."""
    front, owner = asker(request)
    house = await front.house(owner)
    given, notes = read_settings(await body_of(request))
    for name in (CHECKPOINT, "sd_checkpoint_hash"):
        if given.get(name):
            given[CHECKPOINT] = find_model(str(given[name]), house)
            break
    given.pop("sd_checkpoint_hash", None)
    front.keep_settings(owner, {**front.settings_of(owner), **given})
    headers = {WARNINGS_HEADER: json.dumps(notes)} if notes else {}
    return JSONResponse(None, headers=headers)
