"""Files that are either whole or absent."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from sfrjax.errors import SfrjaxError


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and is removed when it does not.

    Missing folders are made. A link is followed. With `durable` the content is on the disk before it takes the place.

    Raises:
        SfrjaxError: the folder cannot be written or the disk is full; what `path` held before is untouched.
    """
    target = path.resolve()
    temporary = target.with_name(f".{uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        yield temporary
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(target)
    except OSError as error:
        raise SfrjaxError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def output_folder(path: Path) -> Path:
    """Make a folder for results and prove that it can be written. Raises SfrjaxError otherwise."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SfrjaxError(f"--out {path}: cannot be written ({error.strerror or error}); choose another") from error
    return path
