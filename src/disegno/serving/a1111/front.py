"""What the routes of this door share: the body of a request, who asks, their settings, the names that may be chosen."""

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.responses import Response

from disegno.core.errors import DisegnoError
from disegno.core.files import write_atomically
from disegno.core.request import FILELESS
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errands import Errands
from disegno.serving.a1111.errors import WireError
from disegno.serving.a1111.house import House, Named
from disegno.serving.a1111.names import Names, Sampler, Schedule
from disegno.serving.a1111.options import read_settings
from disegno.serving.app import jobs_of
from disegno.serving.guard import owner_of
from disegno.serving.jobs import Jobs
from disegno.serving.words import Catalogue, WeightsCard

NUM_SEEDS = 4294967294  # A1111 parity: a random seed is drawn from [0, this)
LOOK_SECONDS = 20.0  # a worker that draws looks between two steps
START_SECONDS = 60.0  # how long a request waits for the model's process to be ready for the first time
LATENT_MODES = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
)
PIXEL_MODES = ("None", "Lanczos", "Nearest")


class TimedRoute(APIRoute):
    """A route whose answers say how long they took, as A1111's do."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, timed."""
        handler = super().get_route_handler()

        async def timed(request: Request) -> Response:
            began = time.perf_counter()
            response = await handler(request)
            response.headers["X-Process-Time"] = f"{time.perf_counter() - began:.4f}"
            return response

        return timed


@dataclass
class Front:
    """What this door remembers of one server. `settings`: each owner's own, also on the disk."""

    jobs: Jobs
    errands: Errands
    settings: dict[str, dict[str, Json]] = field(default_factory=dict[str, dict[str, Json]])

    def _file(self, owner: str) -> Path:
        name = hashlib.sha256(owner.encode()).hexdigest()[:32]
        return self.jobs.settings.folder / "a1111" / f"{name}.json"

    def settings_of(self, owner: str) -> dict[str, Json]:
        """Return an owner's settings. What cannot be read any more is left out."""
        if owner not in self.settings:
            self.settings[owner] = _read_settings(self._file(owner))
        return self.settings[owner]

    def keep_settings(self, owner: str, settings: Mapping[str, Json]) -> None:
        """Remember an owner's settings."""
        self.settings[owner] = dict(settings)
        path, content = self._file(owner), json.dumps(settings).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

    async def catalogue(self) -> Catalogue:
        """Return what the workers can do; right after the start, wait for the first one. Raises Refused."""
        until = time.monotonic() + START_SECONDS
        while self.jobs.dispatcher.catalogue is None and time.monotonic() < until:
            await asyncio.sleep(0.1)
        return self.jobs.catalogue

    async def look(self) -> None:
        """Let the workers look at the model folders again; A1111 parity: the lists are new when this returns."""
        await self.jobs.dispatcher.look(LOOK_SECONDS)

    async def house(self, owner: str) -> House:
        """Return the names that this owner's requests may choose, and their settings."""
        catalogue = await self.catalogue()
        return House(
            models=[named_model(card) for card in catalogue.models],
            vaes=named_vaes(catalogue),
            controls=named_controls(catalogue),
            upscalers=upscaler_names(catalogue, latent=True),
            styles=style_names(catalogue),
            names=names_of(catalogue).resolve,
            draw=lambda: random.randrange(NUM_SEEDS),
            settings=self.settings_of(owner),
        )


def _read_settings(path: Path) -> dict[str, Json]:
    if not path.is_file():
        return {}
    try:
        return read_settings(json.loads(path.read_text("utf-8")))[0]
    except (OSError, ValueError, DisegnoError):
        return {}


def front_of(request: Request) -> Front:
    """Return this door's memory, in a route."""
    jobs = jobs_of(request)
    state = request.app.state
    if getattr(state, "a1111", None) is None:
        state.a1111 = Front(jobs, Errands(jobs))
    return cast(Front, state.a1111)


def asker(request: Request) -> tuple[Front, str]:
    """Return this door's memory and who is asking, in a route."""
    return front_of(request), owner_of(request)


async def body_of(request: Request) -> dict[str, Json]:
    """Return the JSON object of a request; none is an empty one. Raises WireError."""
    content = await request.body()
    try:
        body = from_json(content, allow_inf_nan=False) if content.strip() else {}  # also where no JSON was announced
    except ValueError as error:
        raise WireError(f"The body is not JSON: {str(error)[:100]}.", 400) from None
    if not isinstance(body, dict):
        raise WireError("The body must be a JSON object.")
    return cast("dict[str, Json]", body)


def named_model(card: WeightsCard) -> Named:
    """Return a model by A1111's names: file.safetensors [6ce0161689]."""
    sha256 = card.sha256 or ""
    return Named(card.name, _shown(card), sha256[:10], card.file or "", sha256, card.place or "")


def _shown(card: WeightsCard) -> str:
    """Return a file's name; with its folders, as its own name then has them, where another file has the same."""
    file = card.file or card.name
    return card.name if card.name.endswith(f"/{file}") else file


def named_vaes(catalogue: Catalogue) -> list[Named]:
    """Return the VAEs by A1111's names: their files'."""
    vaes = (card for card in catalogue.files if card.kind == "vae")
    return [Named(card.name, _shown(card), file=card.file or "", place=card.place or "") for card in vaes]


def named_controls(catalogue: Catalogue) -> list[Named]:
    """Return the controls by the names of A1111's ControlNet extension: stem [d14c016b]."""
    return [
        Named(card.name, card.name, card.tag or "", card.file or "", card.sha256 or "", card.place or "")
        for card in catalogue.controls
        if card.mechanism not in ("ctrlora-base", *FILELESS.values())  # without a file it is a module there
    ]


def names_of(catalogue: Catalogue) -> Names:
    """Return the samplers and schedules."""
    samplers = (Sampler(card.name, card.aliases, card.default_schedule) for card in catalogue.samplers)
    schedules = (Schedule(c.name, c.label, c.aliases) for c in catalogue.schedules)
    return Names(tuple(samplers), tuple(schedules))


def upscaler_names(catalogue: Catalogue, latent: bool) -> list[str]:
    """Return what can enlarge; `latent`: a hires pass can also work in the latent space."""
    files = [card.name for card in catalogue.files if card.kind == "upscaler"]
    return [*(LATENT_MODES if latent else ()), *PIXEL_MODES, *files]


def style_names(catalogue: Catalogue) -> list[str]:
    """Return the names of the styles that may be used."""
    return [style.name for style in catalogue.styles]
