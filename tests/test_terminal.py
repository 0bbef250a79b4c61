"""Progress and Ctrl-C on a terminal, as a person at one has them."""

import os
import re
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
from PIL import Image

from sfrjax import Settings, cli, fit, save_bank

# A session's first terminal is the one whose Ctrl-C it hears.
MAIN = "import os; os.open(os.ttyname(0), os.O_RDWR); from sfrjax.cli import main; main()"
MANY = 2000
BAR = re.compile(rf"Predicting \S+ +[1-9]\d*/{MANY} [\d.]+/s \d:\d\d:\d\d")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A bank, and so many images that nobody waits for the last."""
    folder = tmp_path_factory.mktemp("terminal")
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    save_bank(fit(sorted(folder.glob("*.png")), Settings(levels=(3,), sampling="none", s=1)), folder / "b.bank")
    (folder / "many").mkdir()
    for i in range(MANY):
        (folder / "many" / f"{i}.png").hardlink_to(folder / f"{i % 4}.png")
    return folder


def on_terminal(arguments: list[object], react) -> tuple[int, str]:
    """`sfrjax ARGUMENTS` on a terminal of its own; `react` is told what it shows and returns what to type."""
    terminal, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen, last = b"", time.monotonic() + 600
    while time.monotonic() < last and select.select([terminal], [], [], 300)[0]:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # that is how a terminal ends
            break
        os.write(terminal, react(plain(seen)))
    else:
        child.kill()
    os.close(terminal)
    return child.wait(), plain(seen)


def plain(seen: bytes) -> str:
    """What is read of it, without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))


def test_ctrl_c_in_the_middle_of_a_progress_bar(work, tmp_path):
    """The bar tells rate and time left; two presses, as an impatient person does; one sentence, last; files whole."""
    pressed = []

    def press(shown: str) -> bytes:
        if len(pressed) == 2 or "sfrjax: interrupted" in shown or not BAR.search(shown):
            return b""
        pressed.append(True)
        return b"\x03"

    out = tmp_path / "out"
    status, shown = on_terminal(["predict", work / "b.bank", work / "many", "--out", out], press)
    assert pressed
    assert status == 130, shown
    # The terminal itself echoes the key, wherever the output happens to be.
    lines = [line for line in re.split(r"[\r\n]+", shown.replace("^C", "")) if line.strip()]
    assert lines[-1].startswith("sfrjax: interrupted; every file written is whole."), lines[-3:]
    assert "Traceback" not in shown
    assert not [path for path in out.iterdir() if path.is_file()]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert files
    for path in files:
        read = {".tiff": tifffile.imread, ".jpg": lambda path: Image.open(path).load()}[path.suffix]
        read(path)


def test_a_press_that_was_lost_can_be_given_again(monkeypatch):
    """A destructor swallows the first; the second is ignored as ever; the third is heard."""

    class Loses:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: lost.append(what.exc_type))
    before = signal.signal(signal.SIGINT, cli._interrupt)
    try:
        Loses()
        assert lost == [cli._Interrupted]
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(cli._Interrupted):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_refusal_stands_below_the_progress_bar(work, tmp_path):
    """A file in the way of the maps is found while the bar is up."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "maps").write_text("in the way")
    status, shown = on_terminal(["predict", work / "b.bank", work / "many", "--out", out], lambda _: b"")
    assert status == 1, shown
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert lines[-1].startswith("sfrjax: "), lines[-3:]
    assert "maps" in lines[-1]
