"""`disegno ui`: the page, in the browser of this machine."""

import asyncio
import contextlib
import webbrowser
from dataclasses import replace
from pathlib import Path
from threading import Thread

import click

from disegno.cli.serve import download_hosts, require_data_roots, require_device, serving_packages
from disegno.core.settings import load_settings


@click.command(name="ui")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where jobs and results are kept.")
@click.option(
    "--data-root", "data_roots", type=click.Path(file_okay=False, path_type=Path), multiple=True, metavar="DIR",
    help="Folders in DIR may be taught from; new data sets are made in the first.",
)  # fmt: skip
@click.option(
    "--allow-download", metavar="HOST", multiple=True,
    help="Models may be fetched from this host, beside Hugging Face and Civitai.",
)  # fmt: skip
@click.option("--device", metavar="D", help="auto, cpu, cuda, mps.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="The numbers to compute in.")
@click.option("--no-browser", is_flag=True, help="Say the address only.")
def command(
    port: int, folder: Path | None, data_roots: tuple[Path, ...], allow_download: tuple[str, ...], device: str | None,
    dtype: str | None, no_browser: bool,
) -> None:  # fmt: skip
    """Draw in the browser: starts a server that only this machine can reach, and opens its page.

    \b
    disegno ui
    disegno ui --port 0 --no-browser

    Ctrl+C ends it; what has not been drawn by then is drawn at the next start. For other machines, and for accounts,
    see `disegno serve`, which has the same page.
    """
    with serving_packages():
        from disegno.serving.serve import log_to_stderr, serve
    from disegno.serving.settings import Limits, ServerSettings
    from disegno.weights.sources import known_hosts

    hosts = download_hosts((*known_hosts(), *allow_download))
    settings = ServerSettings(
        port=port, data_roots=data_roots, machine=load_settings(device=device, dtype=dtype),
        limits=Limits(download_hosts=hosts),
    )  # fmt: skip
    require_data_roots(data_roots)
    require_device(settings.machine)
    log_to_stderr()

    def started(used: int) -> None:
        address = f"http://127.0.0.1:{used}"
        click.echo(f"Disegno draws at {address}  (Ctrl+C ends it)")
        if (
            not no_browser
        ):  # in a thread: a browser may take seconds to start, and one of a terminal as long as it is used
            Thread(target=_open, args=(address,), name="browser", daemon=True).start()

    asyncio.run(serve(replace(settings, folder=folder) if folder else settings, started))


def _open(address: str) -> None:
    with contextlib.suppress(webbrowser.Error):  # the address has been said
        webbrowser.open(address)
