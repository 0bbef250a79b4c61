"""The command line: what surrounds every command, so that its user sees a sentence and never a traceback."""

import gc
import io
import os
import signal
import sys
import warnings
from typing import NoReturn

from sfrjax.commands import app
from sfrjax.errors import SfrjaxError
from sfrjax.weights.fetch import cache_folder


def _repeat_option(arguments: list[str], option: str) -> list[str]:
    """Let one option take several values: `--category a b` becomes `--category a --category b`."""
    repeated: list[str] = []
    open_option = False
    for argument in arguments:
        if argument.startswith("-"):
            open_option = argument == option
        elif open_option and repeated[-1] != option:
            repeated.append(option)
        repeated.append(argument)
    return repeated


class _Interrupted(BaseException):
    """Ctrl-C, under a name that the command-line library leaves to us."""


def _interrupt(*_: object) -> NoReturn:
    # The impatient second press is ignored: what is being written is soon whole. A third is heard, because the first is
    # lost where it met a destructor or a callback of the garbage collector, whose exceptions Python drops.
    signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, _interrupt))
    raise _Interrupted


def main() -> None:
    """Entry point: every problem that the user can mend is one sentence on standard error and exit status 1."""
    # Compiled programs are kept between runs: half of a short command's time is compilation. JAX reads these when it is
    # first imported; the user's own settings win.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be text
            stream.reconfigure(errors="backslashreplace")
    # Pillow warns of oddities in a file where it also raises, or where the pixels are none the worse for them.
    warnings.filterwarnings("ignore", module="PIL")
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        problem, status = _run(_repeat_option(sys.argv[1:], "--category"))
        # Now that what was being done is gone, and its progress bar with it, the sentence comes last.
        gc.collect()
        print(f"sfrjax: {problem}", file=sys.stderr)
        sys.exit(status)
    finally:
        signal.signal(signal.SIGINT, before)


def _run(arguments: list[str]) -> tuple[str, int]:
    """Do what the command line says; return what went wrong and the exit status, or raise SystemExit."""
    try:
        app(arguments)
    except SfrjaxError as error:
        return str(error), 1
    except _Interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return (
            "interrupted; every file written is whole. The same command starts again from the first image (a download "
            "goes on where it broke off)"
        ), 130
    except BrokenPipeError:  # `sfrjax ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a file that vanished, may not be read, has a name too long: wherever it was met
        return f"{error.filename or 'a file'}: {error.strerror or error}", 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return "out of memory; give a smaller --batch-size, fewer --levels, or fewer nominal images", 1
    raise AssertionError("the command-line library exits by itself")
