"""`disegno ui`: what it starts, and what it opens."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def test_it_serves_this_machine_only_and_opens_the_page(
    started: tuple[list[ServerSettings], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, opened = started
    (tmp_path / "sets").mkdir()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["ui", "--port", "0", "--folder", "jobs", "--data-root", "sets"])
    assert done.exit_code == 0, done.output
    assert (settings[0].host, settings[0].folder, settings[0].data_roots) == (
        "127.0.0.1",
        Path("jobs"),
        (Path("sets"),),
    )
    _wait_for_browser()
    assert opened == ["http://127.0.0.1:4321"] and opened[0] in done.output


def _wait_for_browser() -> None:
    for thread in threading.enumerate():
        if thread.name == "browser":
            thread.join(10)


def test_a_browser_that_takes_its_time_holds_nothing_up(
    started: tuple[list[ServerSettings], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a terminal is open as long as it is used, and the page that it asks for is answered meanwhile."""
    closed, ended = threading.Event(), list[str]()

    def browse(address: str) -> None:
        closed.wait(20)
        ended.append(address)

    monkeypatch.setattr("webbrowser.open", browse)
    assert CliRunner().invoke(main, ["ui"]).exit_code == 0
    assert ended == []
    closed.set()
    _wait_for_browser()
    assert ended == ["http://127.0.0.1:7860"]


def test_without_a_browser_it_says_the_address(started: tuple[list[ServerSettings], list[str]]) -> None:
    done = CliRunner().invoke(main, ["ui", "--no-browser"])
    assert "http://127.0.0.1:7860" in done.output and started[1] == []


@pytest.mark.parametrize(
    "option, given",
    [
        ("--allow-origin", "example.org"),
        ("--allow-origin", "https://example.org/page"),
        ("--allow-host", "https://example.org"),
        ("--allow-host", "example.org:8443"),
        ("--allow-url", "https://example.org/x"),
        ("--proxy", "example.org"),
    ],
)
def test_serve_refuses_what_would_never_match(
    started: tuple[list[ServerSettings], list[str]], option: str, given: str
) -> None:
    done = CliRunner().invoke(main, ["serve", option, given])
    assert done.exit_code == 2 and option in done.output and started[0] == []


def test_serve_takes_what_it_is_given(started: tuple[list[ServerSettings], list[str]]) -> None:
    words = {
        "--allow-origin": "https://Example.org/", "--allow-host": "example.org", "--allow-url": "*",
        "--proxy": "10.0.0.0/8", "--api-key": "c2VjcmV0LWtleQ==", "--auth": "anna:a:long=password",
    }  # fmt: skip
    done = CliRunner().invoke(main, ["serve", "--api-key", "robot=another=key==", *sum(words.items(), ())])
    assert done.exit_code == 0, done.output
    ((given,), _) = started
    assert (given.allow_origins, given.allow_hosts) == (("https://example.org",), ("example.org",))
    assert (given.allow_urls, given.proxies) == (("*",), ("10.0.0.0/8",))
    assert [(each.name, each.secret, each.key) for each in given.accounts] == [
        ("anna", "a:long=password", False),
        ("robot", "another=key==", True),
        ("key", "c2VjcmV0LWtleQ==", True),
    ]


def test_a_device_that_cannot_be_used_is_said_before_anything_is_served(
    started: tuple[list[ServerSettings], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("disegno.cli.serve.ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    done = CliRunner().invoke(main, ["ui", "--no-browser", "--device", "tpu"])
    assert done.exit_code == 2 and "The device 'tpu' cannot be used" in done.output, done.output
    assert not started[0]


@pytest.mark.parametrize("command", ["serve", "ui"])
def test_a_data_root_that_is_no_folder_is_said(
    command: str, started: tuple[list[ServerSettings], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    roots = ["--data-root", str(tmp_path / "there"), "--data-root", str(tmp_path / "missing")]
    done = CliRunner().invoke(main, [command, *roots])
    assert done.exit_code == 2 and f"--data-root {tmp_path / 'missing'} is no folder" in done.output, done.output
    assert not started[0]
    assert CliRunner().invoke(main, [command, "--data-root", str(tmp_path / "there")]).exit_code == 0
    assert len(started[0]) == 1


@pytest.mark.parametrize("db", ["nothing://here", "oracle://x", "sqlite:////nowhere/at/all.sqlite"])
def test_a_database_that_cannot_be_opened_is_said(db: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["serve", "--port", "0", "--folder", str(tmp_path), "--db", db])
    assert done.exit_code == 2 and "The jobs' database" in done.output and "Traceback" not in done.output


@pytest.mark.parametrize("command", ["serve", "ui"])
def test_without_the_servers_packages_it_says_how_to_install_them(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "disegno.serving.serve")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(main, [command])
    assert done.exit_code == 2 and "uvicorn" in done.output and "pip install 'disegno[serve]'" in done.output
