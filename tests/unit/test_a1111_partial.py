"""Orders that cannot go on midway: what was drawn till then is kept, said, and given back."""

import asyncio
import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from disegno.serving.a1111 import errands, routes_controlnet, routes_extras, routes_generate
from disegno.serving.a1111.answer import Drawn, Model
from disegno.serving.a1111.coerce import Json
from disegno.serving.a1111.errands import Errands
from disegno.serving.a1111.house import House
from disegno.serving.faults import Refused
from disegno.serving.jobs import Jobs
from kit.house import HOUSE

pytestmark = pytest.mark.unit

FULL = Refused(429, "too_many_jobs", "Try later: 8 of your jobs wait already.", headers={"Retry-After": "9"})
NO_ROOM = Refused(507, "no_room", "The server's disk is full.")
STOPPING = Refused(503, "draining", "The server is stopping.")


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()


@dataclass(frozen=True)
class Ended:
    """A job of the fake."""

    id: str
    state: str = "done"
    failure: None = None
    started: float = 1.0
    outcome: Any = field(default_factory=lambda: SimpleNamespace(files=[SimpleNamespace(name="0.png")], facts={}))


@dataclass
class Fake:
    """Jobs that end at once. `answers`: what each request for one is answered with; then all end well."""

    answers: list[Refused | str] = field(default_factory=list[Refused | str])
    asked: int = 0
    ended: Ended | None = None

    async def submit(self, kind: str, request: object, owner: str) -> Ended:
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else "done"
        if isinstance(answer, Refused):
            raise answer
        self.ended = Ended(str(self.asked), answer)
        return self.ended

    async def wait(self, job_id: str, owner: str, is_gone: object) -> Ended:
        assert self.ended is not None and self.ended.id == job_id
        return self.ended

    async def fetched(self, fields: Any) -> Any:
        return fields

    def path(self, job: Ended, name: str) -> Any:
        return SimpleNamespace(read_bytes=lambda: PNG)


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, each time."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(errands.asyncio, "sleep", sleep)
    return pauses


Ask = Callable[..., tuple[Any, Any]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, paused: list[float]) -> Ask:
    """Return what a route answers to a body, as JSON, and its response, when its jobs fare so."""

    def asked(route: Any, body: dict[str, Json], fake: Fake, gone: bool = False) -> tuple[Any, Any]:
        async def house(owner: str) -> House:
            return HOUSE

        async def body_of(request: object) -> dict[str, Json]:
            return body

        async def is_disconnected() -> bool:
            return gone

        async def catalogue() -> Any:
            return SimpleNamespace(files=())

        front = SimpleNamespace(errands=Errands(cast(Jobs, fake)), jobs=fake, house=house, catalogue=catalogue)
        for module in (routes_generate, routes_extras, routes_controlnet):
            monkeypatch.setattr(module, "asker", lambda request: (front, "anna"))  # pyright: ignore[reportUnknownLambdaType]
            monkeypatch.setattr(module, "body_of", body_of)
        monkeypatch.setattr(routes_generate, "model_of", lambda front, order: Model("diorama"))  # pyright: ignore
        monkeypatch.setattr(routes_generate, "_read", _drawn)
        monkeypatch.setattr(routes_extras, "_job_of", lambda *given: object())  # pyright: ignore
        monkeypatch.setattr(routes_extras, "_written", lambda *given: PNG)  # pyright: ignore
        response = asyncio.run(route(SimpleNamespace(is_disconnected=is_disconnected)))
        return json.loads(response.body), response

    return asked


def _drawn(jobs: object, job: Ended, order: Any, told: object) -> Drawn:
    request = replace(order.requests[0], width=64, height=64)
    return Drawn(request, (PNG,), ("a cat",), (int(job.id),), (0,))


FOUR: dict[str, Json] = {"prompt": "a cat", "n_iter": 4}


def test_an_order_that_has_begun_waits_where_too_much_waits(ask: Ask, paused: list[float]) -> None:
    fake = Fake(["done", FULL, FULL, "done"])
    body, response = ask(routes_generate.txt2img, FOUR, fake)
    assert (len(body["images"]), fake.asked, paused) == (4, 6, [5.0, 5.0])
    assert json.loads(body["info"])["warnings"] == [] and "X-Disegno-Warnings" not in response.headers


def test_one_that_has_not_begun_is_refused_at_once(ask: Ask, paused: list[float]) -> None:
    with pytest.raises(Refused, match="Try later"):
        ask(routes_generate.txt2img, FOUR, Fake([FULL]))
    assert not paused


def test_for_a_client_that_is_gone_nothing_waits(ask: Ask, paused: list[float]) -> None:
    fake = Fake(["done", FULL])
    body, _ = ask(routes_generate.txt2img, FOUR, fake, gone=True)
    assert (len(body["images"]), fake.asked, paused) == (1, 2, [])


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (["done", "done", "cancelled"], "The job was cancelled."),
        (["done", "done", NO_ROOM], "The server's disk is full."),
    ],
)
def test_what_was_drawn_before_the_end_is_given_back(answers: list[Any], why: str, ask: Ask) -> None:
    fake = Fake(answers)
    body, response = ask(routes_generate.txt2img, {**FOUR, "unknown": 1}, fake)
    told = f"2 of 4 were drawn: {why}"
    info = json.loads(body["info"])
    assert (len(body["images"]), info["all_seeds"], fake.asked) == (2, [1, 2], 3)
    assert (info["warnings"][0], len(info["warnings"])) == (told, 2)
    assert json.loads(response.headers["X-Disegno-Warnings"]) == [told]


@pytest.mark.parametrize(("answers", "status"), [(["cancelled"], 409), ([NO_ROOM], 507), (["done", STOPPING], 503)])
def test_what_never_began_and_a_server_that_stops_are_errors(answers: list[Any], status: int, ask: Ask) -> None:
    with pytest.raises(Refused) as caught:
        ask(routes_generate.txt2img, FOUR, Fake(answers))
    assert caught.value.status == status


def test_a_plot_that_ends_early_has_its_cells_so_far(ask: Ask) -> None:
    args: list[Json] = [4, "5,6,7", []]
    asked: dict[str, Json] = {"prompt": "a cat", "script_name": "X/Y/Z plot", "script_args": args}
    body, _ = ask(routes_generate.txt2img, asked, Fake(["done", NO_ROOM]))
    assert len(body["images"]) == 1 and json.loads(body["info"])["warnings"][0].startswith("1 of 3 were drawn")


def test_pictures_that_are_enlarged_and_drawings_alike(ask: Ask) -> None:
    picture = base64.b64encode(PNG).decode()
    many: dict[str, Json] = {"imageList": [{"data": picture, "name": str(i)} for i in range(3)]}
    body, _ = ask(routes_extras.extra_batch_images, many, Fake(["done", "cancelled"]))
    assert len(body["images"]) == 1 and "<p>1 of 3 were enlarged: The job was cancelled.</p>" in body["html_info"]
    with pytest.raises(Refused, match="cancelled"):
        ask(routes_extras.extra_single_image, {"image": picture}, Fake(["cancelled"]))
    detect: dict[str, Json] = {"controlnet_module": "canny", "controlnet_input_images": [picture, picture, picture]}
    drawn, _ = ask(routes_controlnet.detect, detect, Fake(["done", "done", NO_ROOM]))
    assert (len(drawn["images"]), drawn["warnings"]) == (2, ["2 of 3 were drawn: The server's disk is full."])
