"""Whatever is sent to /v1 is answered as the OpenAPI document says, and never by a fault of the server (schemathesis).

The jobs of a server without workers, in process: what is acknowledged is on the disk and waits.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from disegno.core.settings import Settings
from disegno.serving.app import create_app, open_jobs
from disegno.serving.settings import ServerSettings
from disegno.serving.words import Catalogue

pytestmark = pytest.mark.contract

EXAMPLES = 12
SLOW = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "data" / "photos").mkdir(parents=True)
    own = ServerSettings(folder=folder, machine=Settings(), data_roots=(folder / "data",), allow_hosts=("testserver",))
    app = create_app(own)
    app.router.lifespan_context = _alive  # no worker is started
    app.state.jobs = open_jobs(own)
    app.state.jobs.dispatcher.catalogue = Catalogue()
    yield app
    app.state.jobs.store.close()


@asynccontextmanager
async def _alive(app: FastAPI) -> AsyncGenerator[None]:
    yield


CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
HABITS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=SLOW,
)


def test_every_answer_is_what_the_document_says(app: FastAPI) -> None:
    whole = schemathesis.openapi.from_asgi("/openapi.json", app)
    document = whole.include(path_regex="^/(v1|health|metrics)").exclude(path_regex="/(events|images)")
    found = list(document.get_all_operations())
    operations = [one.ok() for one in found if isinstance(one, Ok)]
    assert len(operations) == len(found)
    assert len(operations) > 15
    for operation in operations:

        @HABITS
        @given(case=operation.as_strategy())
        def check(case: Case) -> None:
            case.validate_response(case.call(), checks=CHECKS)

        check()
