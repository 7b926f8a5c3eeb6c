"""Where models come from: what a person writes, as files that can be fetched.

    https://host/path/model.safetensors                 a file
    hf:ORG/REPO/path/model.safetensors[@REVISION]       a file of a repository of Hugging Face, or its page's address
    hf:ORG/REPO[@REVISION]                              a folder of diffusers' (a model, a control or a VAE)
    civitai:VERSION                                     a version of a model there, by number, or its page's address; of
                                                        a model's page: its newest version

Facts of Hugging Face's and Civitai's public interfaces. HF_ENDPOINT names a mirror; HF_TOKEN and CIVITAI_TOKEN open
what asks who one is.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from disegno.core.errors import RequestError
from disegno.weights.download import MAX_NAME_BYTES, Remote

_HUB, _CIVITAI = "https://huggingface.co", "https://civitai.com"
_PARTS = {
    *("unet", "transformer", "vae", "scheduler", "depth_estimator"),
    *(f"{word}{number}" for word in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")),
}
_WEIGHTS = (".safetensors", ".bin")  # the first that a folder has
_BESIDE = (".json", ".txt", ".model")
_ALONE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
_FOREIGN = ("flax_", "tf_", "openvino_", "rust_", "onnx")
_HALF = ".fp16"
_CIVITAI_PAGE = re.compile(r"/models/(\d+)(?:/|$)")
_URL = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?([/?][!-\[\]-~]*)?", re.IGNORECASE)
_INDEX = re.compile(r"(\.safetensors|\.bin)\.index(?:\.fp16)?\.json$")  # the table of several files

Ask = Callable[[str, str], Any]
"""(address, token) -> what the server says, as JSON."""


@dataclass(frozen=True)
class Source:
    """What shall be fetched. `folder`: what the files are a folder of; "": one file by itself."""

    files: tuple[Remote, ...]
    folder: str = ""

    @property
    def num_bytes(self) -> int:
        """How many bytes are known to come."""
        return sum(file.num_bytes for file in self.files)

    def known_by(self, sha256: str) -> "Source":
        """Return the same, whose one file must have this hash. Raises RequestError of a folder."""
        if self.folder:
            raise RequestError("A sha256 is of one file, and this is a folder. Leave it out: each file has its own.")
        return replace(self, files=(replace(self.files[0], sha256=sha256),))


def find_source(given: str, ask: Ask, environ: Mapping[str, str] = os.environ, half: bool = False) -> Source:
    """Return the files that are meant. `half`: of a folder that has its weights twice, those of half precision.

    Raises RequestError where nothing is meant, or several things could be.
    """
    _require_readable(given)
    hub = _hub(environ)
    if _is_civitai(given):
        return Source((_of_civitai(given, environ.get("CIVITAI_TOKEN", ""), ask),))
    if (found := _on_hub(given, hub)) is not None:
        return _of_hub(found, hub, environ.get("HF_TOKEN", ""), ask, half)
    return Source((Remote(given),))


def host_of(given: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return which host is asked for what is meant, as host or host:port. Raises RequestError as `find_source`."""
    _require_readable(given)
    hub = _hub(environ)
    if _is_civitai(given):
        return urlsplit(_CIVITAI).netloc
    return urlsplit(given if _on_hub(given, hub) is None else hub).netloc.lower()


def known_hosts(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the hosts whose addresses are known here: Hugging Face's, or its mirror's, and Civitai's."""
    return urlsplit(_hub(environ)).netloc.lower(), urlsplit(_CIVITAI).netloc


def _hub(environ: Mapping[str, str]) -> str:
    return environ.get("HF_ENDPOINT", _HUB).rstrip("/")


def _require_readable(given: str) -> None:
    """Raise RequestError for what is neither of the four, and for addresses that two readers could read differently."""
    if given.startswith(("hf:", "civitai:")) or _URL.fullmatch(given):
        return
    if urlish := re.match(r"https?:", given, re.IGNORECASE):
        raise RequestError(
            f"{given!r} is no plain address. Give it as a browser copies it: {urlish[0]}//host/path, without a name or"
            " password, and % for what is no ASCII."
        )
    raise RequestError(
        f"{given!r} names nothing that can be fetched. Give an address (https://...), hf:ORG/REPO/FILE, hf:ORG/REPO, or"
        " civitai:VERSION."
    )


def _is_civitai(given: str) -> bool:
    return given.startswith("civitai:") or urlsplit(given).hostname in ("civitai.com", "www.civitai.com")


def _of_civitai(given: str, token: str, ask: Ask) -> Remote:
    """Return the file of a version, or of a model's newest one. Raises RequestError where neither is named."""
    url = urlsplit(given)
    if "/api/download/" in url.path:
        return Remote(f"{_CIVITAI}{url.path}{'?' if url.query else ''}{url.query}", token=token)
    if given.startswith("civitai:"):
        version = given.removeprefix("civitai:")
    else:
        version = next(iter(parse_qs(url.query).get("modelVersionId", ())), "")
    if version.isdigit():
        return _version(ask(f"{_CIVITAI}/api/v1/model-versions/{version}", token), version, token)
    if version or not (found := _CIVITAI_PAGE.match(url.path)):
        raise RequestError(
            f"{given} names no model there: give the address of its page, or civitai:NUMBER, the number behind"
            " modelVersionId= in the address of a version's page."
        )
    said = ask(f"{_CIVITAI}/api/v1/models/{found[1]}", token)
    versions = said.get("modelVersions") if isinstance(said, dict) else None
    newest = versions[0] if isinstance(versions, list) and versions and isinstance(versions[0], dict) else {}
    if not str(newest.get("id", "")).isdigit():
        raise RequestError(f"{given} has no version to fetch. Look whether the address is right.")
    return _version(newest, str(newest["id"]), token)


def _version(said: Any, version: str, token: str) -> Remote:
    """Return a version's own file, with what is said of it, as far as something is."""
    files = said.get("files") if isinstance(said, dict) else None
    some = [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    own = [file for file in some if file.get("primary")] or [file for file in some if file.get("type") == "Model"]
    file = next(iter(own), {})
    url = str(file.get("downloadUrl", ""))
    if not url.startswith(f"{_CIVITAI}/"):  # the token is for this host
        return Remote(f"{_CIVITAI}/api/download/models/{version}", token=token)
    hashes, kib = file.get("hashes"), file.get("sizeKB")
    sha256 = str(hashes.get("SHA256", "")).lower() if isinstance(hashes, dict) else ""
    num_bytes = round(kib * 1024) if isinstance(kib, int | float) else 0
    name = str(file.get("name", ""))
    plain = name if _is_inside(name) and "/" not in name and not name.startswith(".") else ""
    return Remote(url, plain, num_bytes, sha256 if len(sha256) == 64 else "", token)


@dataclass(frozen=True)
class _Place:
    """A repository of Hugging Face, or a file in it."""

    repo: str
    path: str = ""
    revision: str = "main"


def _on_hub(given: str, hub: str) -> _Place | None:
    """Return the repository or file that is meant; None: something else is. Raises RequestError."""
    if given.startswith("hf:"):
        given, _, revision = given.removeprefix("hf:").partition("@")
        org, _, rest = given.partition("/")
        repo, _, path = rest.partition("/")
        if not (org and repo):
            raise RequestError(f"hf:{given} says no repository: it wants hf:ORG/REPO, or hf:ORG/REPO/FILE.")
        return _Place(f"{org}/{repo}", path.strip("/"), revision or "main")
    url = urlsplit(given)
    if url.netloc not in (urlsplit(hub).netloc, urlsplit(_HUB).netloc, "hf.co"):
        return None
    parts = [unquote(part) for part in url.path.strip("/").split("/")]
    if len(parts) >= 2 and (len(parts) == 2 or parts[2] in ("blob", "resolve", "tree")):
        revision = parts[3] if len(parts) > 3 else "main"
        return _Place("/".join(parts[:2]), "/".join(parts[4:]) if parts[2:3] != ["tree"] else "", revision)
    return None


def _of_hub(place: _Place, hub: str, token: str, ask: Ask, half: bool) -> Source:
    """Return the file, with what the repository says of it, or the folder's files."""
    listed = _listed(place, hub, token, ask)

    def remote(path: str, name: str) -> Remote:
        says = listed[path]
        large = says.get("lfs")
        sha256 = large.get("oid", "") if isinstance(large, dict) else ""
        url = f"{hub}/{quote(place.repo)}/resolve/{quote(place.revision, safe='')}/{quote(path)}"
        return Remote(url, name, int(says.get("size") or 0), sha256 if len(sha256) == 64 else "", token)

    if place.path:
        if place.path not in listed:
            raise RequestError(f"There is no {place.path} in {place.repo}. {_there(listed)}")
        return Source((remote(place.path, PurePosixPath(place.path).name),))
    chosen = files_of_folder(list(listed), half)
    if not chosen:
        raise RequestError(
            f"{place.repo} is no folder of diffusers'. Say which file of it, as hf:{place.repo}/FILE. {_there(listed)}"
        )
    return Source(tuple(remote(path, path) for path in chosen), place.repo.rpartition("/")[2])


def _listed(place: _Place, hub: str, token: str, ask: Ask) -> dict[str, dict[str, Any]]:
    """Return what a repository's list says of each file. Raises RequestError."""
    said = ask(f"{hub}/api/models/{quote(place.repo)}/tree/{quote(place.revision, safe='')}?recursive=true", token)
    rows = [row for row in said if isinstance(row, dict)] if isinstance(said, list) else []
    files = {str(row.get("path")): row for row in rows if row.get("type") == "file"}
    found = {path: row for path, row in files.items() if _is_inside(path)}
    if not found:
        raise RequestError(f"{place.repo} has no files. Look whether it is written so.")
    return found


def _is_inside(path: str) -> bool:
    """Return whether a name that a server gives stays in its folder, on every system."""
    parts = path.replace("\\", "/").split("/")
    return all(part not in ("", ".", "..") and ":" not in part and "\0" not in part for part in parts)


def _there(listed: Mapping[str, Mapping[str, Any]]) -> str:
    files = [(path, int(says.get("size") or 0)) for path, says in listed.items() if path.endswith(_ALONE)]
    words = ", ".join(f"{path} ({size / 2**30:.2f} GiB)" for path, size in files[:20])
    return f"Its weights: {words}{', ...' if len(files) > 20 else ''}." if words else "It has no weights."


def files_of_folder(paths: Sequence[str], half: bool = False) -> list[str]:
    """Return the files of a diffusers folder that are needed to open it, in order; none where it is no such folder.

    Of the weights of a part: safetensors where there are some; of half precision where that is asked for and there, or
    where there are no others.
    """
    names = set(paths)
    if "model_index.json" in names:
        parts, chosen = sorted({path.split("/")[0] for path in paths} & _PARTS), ["model_index.json"]
    elif "config.json" in names and any("/" not in path and _is_weights(path) for path in paths):
        parts, chosen = [""], list[str]()
    else:
        return []
    for part in parts:
        some = [path for path in paths if str(PurePosixPath(path).parent) == (part or ".")]
        beside = [path for path in some if path.endswith(_BESIDE) and not _INDEX.search(path)]
        chosen += [path for path in beside if part or path == "config.json"]
        chosen += _weights_of(some, half)
    return chosen


def _is_weights(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.endswith(_WEIGHTS) and not name.startswith(_FOREIGN) and name != "training_args.bin"


def _weights_of(paths: Sequence[str], half: bool) -> list[str]:
    """Return a part's weights of one kind and one precision, with the table of their shards."""
    kind = next((each for each in _WEIGHTS if any(_is_weights(path) and path.endswith(each) for path in paths)), "")
    some = [path for path in paths if _is_weights(path) and path.endswith(kind)] if kind else []
    some += [path for path in paths if (found := _INDEX.search(path)) and found[1] == kind]
    by_variant: dict[str, list[str]] = {}
    for path in some:
        name = PurePosixPath(path).name
        by_variant.setdefault(next((word for word in (_HALF, ".non_ema") if word in name), ""), []).append(path)
    wanted = (_HALF, "") if half else ("", _HALF)
    return next((by_variant[word] for word in (*wanted, ".non_ema") if word in by_variant), [])


def plain_name(name: str) -> str:
    """Return a name that is one. Raises RequestError for a path, for one that is hidden, and for what no disk takes."""
    if not name or not name.isprintable() or name != Path(name).name or name.startswith("."):
        raise RequestError(f"{name!r} is no name of a file here: give it one without folders.")
    if len(name.encode()) > MAX_NAME_BYTES:
        told = f"{name[:40]!r}... has {len(name.encode())} bytes, and no name of a file here has more than"
        raise RequestError(f"{told} {MAX_NAME_BYTES}: give it a shorter one.")
    return name


_HOMES: Mapping[str, tuple[str, ...]] = {
    "model": ("Stable-diffusion", "checkpoints"),
    "unet": ("unet", "diffusion_models"),
    "lora": ("Lora", "loras"),
    "control": ("ControlNet", "controlnet"),
    "vae": ("VAE", "vae"),
    "text": ("text_encoder", "text_encoders", "clip"),
    "embedding": ("embeddings",),
    "upscaler": ("ESRGAN", "upscale_models"),
}


def home_of(kind: str, folder: Path) -> Path:
    """Return where in a folder of models a file of a kind belongs: in A1111's or ComfyUI's own, where there is one."""
    roots = (folder, folder.parent) if folder.name == "models" else (folder,)  # A1111's embeddings lie beside it
    places = (root / name for root in roots for name in _HOMES.get(kind, ()))
    return next((place for place in places if place.is_dir()), folder)


def homes_in(folder: Path) -> list[Path]:
    """Return where in a folder of models a file may be put, of whatever kind: the folder, and each kind's own."""
    return list(dict.fromkeys([folder, *(home_of(kind, folder) for kind in _HOMES)]))
