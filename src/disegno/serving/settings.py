"""How a server is set up: where it listens, who may come in, what a request may cost, how long results are kept."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from platformdirs import user_data_path

from disegno.core.settings import Settings, load_settings

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one request, one user and all of them together may cost."""

    body_bytes: int = 32 * MIB
    """Of one request's body; more is refused before it is read."""
    bodies_bytes: int = 64 * MIB
    """Of all bodies that are being read at one time."""
    waiting_bytes: int = 256 * MIB
    """Of the bodies of all requests that wait for their answer; of one user's, half of it."""
    idle_seconds: float = 20.0
    """How long a client may be silent in the middle of a request."""
    picture_bytes: int = 20 * MIB
    """Of one picture's file."""
    picture_pixels: int = 64 * 10**6
    """Of one picture, opened."""
    pictures: int = 64
    """Pictures in one request."""
    side_px: int = 2048
    """The longer side of what is drawn."""
    pixels: int = 16 * 2**20
    """Width times height times the number of pictures of one job, as large as the hires pass makes them."""
    steps: int = 150
    """Sampling steps."""
    batch: int = 64
    """Pictures of one job."""
    work: int = 2**31
    """Width times height times pictures times steps of one job: 64 pictures of 512 x 512 in 128 steps."""
    sheet_pictures: int = 256
    """Pictures on one sheet."""
    sheet_pixels: int = 64 * 2**20
    """Width times height times pictures on one sheet: 256 pictures of 512 x 512."""
    prompt_chars: int = 20_000
    """Of a prompt."""
    text_chars: int = 100_000
    """Of any other text that is no picture."""
    controls: int = 10
    """Controls of one job."""
    regions: int = 8
    """Regions of one job: each is a further evaluation of the model at every step."""
    networks: int = 10
    """LoRAs in one prompt."""
    queued_per_user: int = 100
    """Jobs of one user that wait; the next is answered 429."""
    queued: int = 1000
    """Jobs that wait, of all users."""
    queued_bytes: int = 512 * MIB
    """Of the requests that wait, with their pictures."""
    streams_per_user: int = 32
    """Event streams that one user holds open."""
    teach_steps: int = 1_000_000
    """Optimiser steps of one training."""
    teach_rows: int = 4096
    """Examples in one optimiser step, and pairs that a training holds out."""
    evaluate_pairs: int = 10_000
    """Pairs of one evaluation."""
    upload_bytes: int = 4 * 2**30
    """Of one upload."""
    download_hosts: tuple[str, ...] = ()
    """Hosts from which models may be fetched into the first model folder, as host or host:port; empty: none are."""
    uploads_per_user: int = 8
    """Uploads of one user that are open."""
    unpacked_bytes: int = 16 * 2**30
    """Of the files of an uploaded zip, unpacked."""
    unpacked_files: int = 200_000
    """Files of an uploaded zip."""
    tries_per_minute: int = 10
    """Wrong passwords from one address for one name, and wrong keys from one address."""


@dataclass(frozen=True)
class Retention:
    """How long the results of ended jobs are kept: until the first of these is passed.

    `num_bytes`: of the results, and once more of what unfinished jobs keep to go on from.
    """

    seconds: float = 7 * 24 * 3600.0
    jobs: int = 10_000
    num_bytes: int = 10 * 2**30


@dataclass(frozen=True)
class Account:
    """Someone who may come in: a name and a secret. `key`: the secret alone is enough (Authorization: Bearer ...)."""

    name: str
    secret: str = field(repr=False)
    key: bool = False


@dataclass(frozen=True)
class ServerSettings:
    """One server. Defaults are safe on a laptop: this machine only, one worker, everything bounded."""

    host: str = "127.0.0.1"
    port: int = 7860
    accounts: tuple[Account, ...] = ()
    """Who may come in; empty: everyone on this machine, and nobody else can reach it."""
    allow_origins: tuple[str, ...] = ()
    """Web pages of other origins that may call this server, as https://example.org."""
    allow_hosts: tuple[str, ...] = ()
    """Names by which this server is called beside its address, as example.org, for use behind a proxy."""
    proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies: who they say they ask for (X-Forwarded-For, X-Forwarded-Proto) is who asks."""
    allow_urls: tuple[str, ...] = ()
    """Hosts from which pictures may be fetched; empty: pictures come inside the request only."""
    data_roots: tuple[Path, ...] = ()
    """Folders in which data sets lie, each a folder; new ones are made in the first. Empty: nothing is taught here."""
    workers: int = 1
    """Processes that hold the model. Trainings, evaluations and new data sets have one of their own beside them."""
    together: int = 4
    """Jobs that one worker steps in turn, or in one batch."""
    sharing: Literal["exact", "auto", "always"] = "auto"
    """Whether jobs share evaluations of the net: never; where it changes no bit of any picture; always."""
    folder: Path = field(default_factory=lambda: user_data_path("disegno") / "server")
    """Where jobs and results are kept."""
    db: str = ""
    """An SQLAlchemy URL for the jobs; empty: SQLite in `folder`."""
    drain_seconds: float = 30.0
    """After SIGTERM: how long running jobs may take to end; then they are put back into the queue."""
    stall_seconds: float = 600.0
    """A worker that reports no progress of its jobs for so long is replaced."""
    limits: Limits = Limits()
    keep: Retention = Retention()
    machine: Settings = field(default_factory=load_settings)
    """Where models are and how the processor is used."""
