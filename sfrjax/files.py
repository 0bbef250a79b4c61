"""Files that are either whole or absent."""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

from sfrjax.errors import SfrjaxError

# Seconds after which a temporary file is no other run's work any more, but what a killed one left behind.
STALE = 3600


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and is removed when it does not.

    Missing folders are made. A link is followed. With `durable` the content is on the disk before it takes the place.
    The temporary file's name is 32 hexadecimal digits between a dot and ".part". A process that is killed leaves it
    behind; the first file that a later process writes into the folder removes those older than an hour.

    Raises:
        SfrjaxError: the folder cannot be written or the disk is full; what `path` held before is untouched.
    """
    target = Path(os.path.realpath(path))  # which, unlike Path.resolve, takes a loop of links as it is
    temporary = target.with_name(f".{uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode  # as the user's umask has it, which libraries that write the file may not heed
        yield temporary
        temporary.chmod(mode)
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(target)
    except OSError as error:
        raise SfrjaxError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@cache
def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".*.part"):
        with suppress(OSError):
            if re.fullmatch(r"\.[0-9a-f]{32}\.part", path.name) and path.stat().st_mtime < time.time() - STALE:
                path.unlink()


def output_folder(path: Path) -> Path:
    """Make a folder for results and prove that it can be written. Raises SfrjaxError otherwise."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SfrjaxError(f"--out {path}: cannot be written ({error.strerror or error}); choose another") from error
    return path
