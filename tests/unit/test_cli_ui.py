"""`disegno ui`: what it starts, and what it opens."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from disegno.cli.main import main
from disegno.serving import serve as serving
from disegno.serving.settings import ServerSettings

pytestmark = pytest.mark.unit


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> tuple[list[ServerSettings], list[str]]:
    """Let nothing be served; return the settings that would be, and the addresses that a browser was sent to."""
    settings: list[ServerSettings] = []
    opened: list[str] = []

    async def serve(given: ServerSettings, tell: Callable[[int], None]) -> None:
        settings.append(given)
        tell(given.port or 4321)

    monkeypatch.setattr(serving, "serve", serve)
    monkeypatch.setattr(serving, "log_to_stderr", lambda: None)
    monkeypatch.setattr("webbrowser.open", opened.append)
    return settings, opened


def test_it_serves_this_machine_only_and_opens_the_page(started: tuple[list[ServerSettings], list[str]]) -> None:
    settings, opened = started
    done = CliRunner().invoke(main, ["ui", "--port", "0", "--folder", "jobs", "--data-root", "sets"])
    assert done.exit_code == 0, done.output
    assert (settings[0].host, settings[0].folder, settings[0].data_roots) == (
        "127.0.0.1",
        Path("jobs"),
        (Path("sets"),),
    )
    assert opened == ["http://127.0.0.1:4321"] and opened[0] in done.output


def test_without_a_browser_it_says_the_address(started: tuple[list[ServerSettings], list[str]]) -> None:
    done = CliRunner().invoke(main, ["ui", "--no-browser"])
    assert "http://127.0.0.1:7860" in done.output and started[1] == []
