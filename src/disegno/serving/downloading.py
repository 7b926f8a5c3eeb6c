"""What a worker does to fetch a model: in a thread of its own, so that it hears what the server wants meanwhile."""

from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import Any

from disegno.core.result import Progress
from disegno.serving.runners import Bench, Running
from disegno.serving.shelf import DownloadRequest, check_download
from disegno.serving.words import Outcome
from disegno.weights.card import FileCard
from disegno.weights.download import read_json
from disegno.weights.getting import get
from disegno.weights.library import first_folder
from disegno.weights.sources import find_source

_LOOK_SECONDS = 0.25
_MIB = 1 << 20


class _Stopped(Exception):
    """The job was cancelled: what has come stays in its folder."""


def download(request: DownloadRequest, bench: Bench) -> Running:
    """Fetch a file or folder into the first model folder; facts say what it is. Its steps are MiB."""
    check_download(request, bench.limits)  # another server may have put it into the queue
    stopped, told = Event(), [Progress(0, 0, "asking")]

    def tell(done: int, of: int, name: str) -> None:
        if stopped.is_set():
            raise _Stopped
        told[0] = Progress(done // _MIB, -(-of // _MIB), "fetching")

    def fetched() -> FileCard:
        source = find_source(request.source, read_json, half=request.half)
        if request.sha256 is not None:
            source = source.known_by(request.sha256)
        return get(source, first_folder(bench.studio.settings), bench.keep, tell, request.name, own=True)

    with ThreadPoolExecutor(1, "download") as pool:
        future = pool.submit(fetched)
        try:
            while not wait((future,), timeout=_LOOK_SECONDS).done:
                yield told[0]
        finally:
            stopped.set()
    card = future.result()
    facts: dict[str, Any] = {
        "source": request.source,
        "name": bench.studio.library.called([card])[0],
        "file": card.path.name,
        "kind": card.kind,
        "family": card.family,
        "mechanism": card.mechanism,
        "bytes": card.num_bytes,
    }
    return Outcome((), (), facts)
