"""The page's files over HTTP: each is there, is asked for again cheaply, and nothing else is given."""

import re

import pytest
from starlette.applications import Starlette
from starlette.requests import Request

from disegno.serving.faults import Refused
from disegno.serving.settings import Limits
from disegno.ui.door import asset, assets, page

pytestmark = pytest.mark.unit


def _request(**headers: str) -> Request:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": lines, "app": Starlette()})


@pytest.mark.anyio
async def test_a_file_is_not_sent_twice() -> None:
    first = await page(_request())
    assert first.status_code == 200 and first.headers["Cache-Control"] == "no-cache"
    again = await page(_request(if_none_match=first.headers["ETag"]))
    assert again.status_code == 304 and not again.body


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["../door.py", "js/../../door.py", "", "js", "/etc/passwd", "js/none.js"])
async def test_other_names_are_not_found(name: str) -> None:
    with pytest.raises(Refused) as caught:
        await asset(name, _request())
    assert caught.value.status == 404


def test_every_file_that_is_named_is_there() -> None:
    names = set(assets())
    html = assets()["index.html"].content.decode()
    assert set(re.findall(r'(?:src|href)="/ui/([^"]+)"', html)) <= names
    for name in names:
        if name.endswith(".js"):
            imported = re.findall(r'from "\./([\w.]+)"', assets()[name].content.decode())
            assert {f"js/{each}" for each in imported} <= names, name


def test_nothing_comes_from_elsewhere_and_nothing_is_put_in_as_html() -> None:
    for name, file in assets().items():
        text = file.content.decode()
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, name
        assert not re.search(r"innerHTML|outerHTML\s*=|insertAdjacentHTML|document\.write|eval\(|new Function", text), (
            name
        )


def test_the_page_knows_how_much_the_server_takes_at_once() -> None:
    (said,) = re.findall(r"MAX_BODY_BYTES = ([\d_]+);", assets()["js/api.js"].content.decode())
    assert int(said) == Limits().body_bytes
