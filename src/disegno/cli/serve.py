"""`disegno serve`: the models over HTTP, for this machine or, with accounts, for others."""

import os
import re
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_network
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from disegno.core.errors import NotInstalled, RequestError
from disegno.core.settings import Settings, load_settings

AUTH_VARIABLE, KEY_VARIABLE = "DISEGNO_AUTH", "DISEGNO_API_KEY"


def parse_accounts(auth: tuple[str, ...], keys: tuple[str, ...]) -> "tuple[Any, ...]":
    """Return the accounts of USER:PASS and [NAME=]KEY texts. Raises RequestError."""
    from disegno.serving.settings import Account

    accounts: list[Account] = []
    for text in auth:
        user, colon, secret = text.partition(":")
        if not (user and colon and secret):
            raise RequestError("--auth wants USER:PASS; what was given has no user or no password.")
        accounts.append(Account(user, secret))
    for text in keys:
        named = re.fullmatch(r"([^=]+)=([^=].*)", text, re.DOTALL)  # a key in base64 may end in =
        name, key = named.groups() if named else ("key", text)
        accounts.append(Account(name, key, key=True))
    return tuple(accounts)


def _origins(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return origins as browsers write them. Raises RequestError for what is none."""
    for text in texts:
        if not re.fullmatch(r"https?://[^/\s]+/?", text):
            raise RequestError(f"--allow-origin wants an origin, as https://example.org; {text!r} is none.")
    return tuple(text.rstrip("/").lower() for text in texts)


def _hosts(option: str, texts: tuple[str, ...], more: str = "") -> tuple[str, ...]:
    """Return names of hosts. Raises RequestError for what no host is called. `more`: what may follow a name."""
    for text in texts:
        if not re.fullmatch(rf"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+){more}", text):
            raise RequestError(f"{option} wants a host's name alone, as example.org; {text!r} is none.")
    return texts


def download_hosts(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return hosts as addresses name them. Raises RequestError for what is none."""
    return tuple(dict.fromkeys(text.lower() for text in _hosts("--allow-download", texts, r"(:\d+)?")))


def _addresses(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return addresses and networks, as 10.0.0.0/8. Raises RequestError for what is neither."""
    try:
        return tuple(str(ip_network(text, strict=False)) for text in texts)
    except ValueError as error:
        raise RequestError(f"--proxy wants an address, as 127.0.0.1, or a network, as 10.0.0.0/8: {error}.") from error


@contextmanager
def serving_packages() -> Generator[None]:
    """Within it the server is imported. Raises NotInstalled where its packages, which are an extra, are not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "disegno":
            raise
        raise NotInstalled(
            f"A server needs the package {package}, which is not here. Install it with those that go with it:"
            " pip install 'disegno[serve]'"
        ) from error


def require_data_roots(folders: tuple[Path, ...]) -> None:
    """Raise RequestError where one of them is no folder: nothing could be taught from it."""
    for folder in folders:
        if not folder.expanduser().is_dir():
            raise RequestError(
                f"--data-root {folder} is no folder here. Make it, or name the one that data sets lie in."
            )


def require_device(settings: Settings) -> None:
    """Raise RequestError where the device that is named cannot be used: no worker could be started.

    It is tried in a process of its own: the server itself holds no torch, and nothing of a GPU.
    """
    if settings.device not in ("auto", "cpu"):
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            other.submit(_try_device, settings).result()


def _try_device(settings: Settings) -> None:
    from disegno.memory import decide

    decide(settings)


def _listed(variable: str) -> tuple[str, ...]:
    return tuple(part for part in os.environ.get(variable, "").split() if part)


@click.command(name="serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen to.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--auth", metavar="USER:PASS", multiple=True, help=f"Someone who may come in; or ${AUTH_VARIABLE}.")
@click.option("--api-key", metavar="[NAME=]KEY", multiple=True, help=f"A key that may come in; or ${KEY_VARIABLE}.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes with the model.")
@click.option(
    "--together", default=4, show_default=True, type=click.IntRange(1, 64), help="Jobs a worker steps in turn."
)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where jobs and results are kept.")
@click.option(
    "--data-root", "data_roots", type=click.Path(file_okay=False, path_type=Path), multiple=True,
    help="Folders in DIR may be taught from, by name; new data sets are made in the first.", metavar="DIR",
)  # fmt: skip
@click.option("--db", metavar="URL", default="", help="An SQLAlchemy URL for the jobs. Unset: SQLite in the folder.")
@click.option("--allow-origin", metavar="ORIGIN", multiple=True, help="Pages of it may call, as https://example.org.")
@click.option("--allow-host", metavar="NAME", multiple=True, help="A name of this server, as example.org.")
@click.option("--proxy", metavar="ADDRESS", multiple=True, help="A proxy's address; its X-Forwarded-For is believed.")
@click.option("--allow-url", metavar="HOST", multiple=True, help="Pictures may be fetched from this host.")
@click.option(
    "--allow-download", metavar="HOST", multiple=True,
    help="Models may be fetched from this host, as huggingface.co or civitai.com.",
)  # fmt: skip
@click.option(
    "--stall",
    default=600.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds without progress, then a worker is replaced.",
)
@click.option("--device", metavar="D", help="auto, cpu, cuda, mps.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="The numbers to compute in.")
def command(
    host: str, port: int, auth: tuple[str, ...], api_key: tuple[str, ...], workers: int, together: int,
    folder: Path | None, data_roots: tuple[Path, ...], db: str, allow_origin: tuple[str, ...],
    allow_host: tuple[str, ...], proxy: tuple[str, ...], allow_url: tuple[str, ...],
    allow_download: tuple[str, ...], stall: float, device: str | None, dtype: str | None,
) -> None:  # fmt: skip
    """Serve the models over HTTP.

    \b
    disegno serve
    disegno serve --host 0.0.0.0 --auth anna:a-long-password --allow-host pictures.example.org
    """
    import asyncio

    with serving_packages():
        from disegno.serving.serve import log_to_stderr, serve
    from disegno.serving.settings import Limits, ServerSettings

    settings = ServerSettings(
        host=host, port=port, workers=workers, together=together, data_roots=data_roots, db=db, stall_seconds=stall,
        accounts=parse_accounts((*auth, *_listed(AUTH_VARIABLE)), (*api_key, *_listed(KEY_VARIABLE))),
        allow_origins=_origins(allow_origin), allow_hosts=_hosts("--allow-host", allow_host),
        allow_urls=_hosts("--allow-url", allow_url, r"(:\d+)?|\*"),
        proxies=_addresses(proxy), machine=load_settings(device=device, dtype=dtype),
        limits=Limits(download_hosts=download_hosts(allow_download)),
    )  # fmt: skip
    require_data_roots(data_roots)
    require_device(settings.machine)
    log_to_stderr()
    shown = f"[{host}]" if ":" in host else host
    asyncio.run(
        serve(
            replace(settings, folder=folder) if folder else settings,
            lambda used: click.echo(f"Disegno listens at http://{shown}:{used}  (API: /openapi.json)"),
        )
    )
