"""A process that is killed at the worst moments of writing a bank leaves the old one or the new one, whole.

scripts/kill.py does it to whole commands, at random moments.
"""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sfrjax import Settings, extend, fit, load_bank, save_bank

WRITE = """
import os, pathlib, signal, sys
import numpy as np
from sfrjax import bank_file

new, target, moment, stream = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "stream"
bank = bank_file.load_bank(new)
header, replace = bank_file._header, pathlib.Path.replace

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def second_header(text, specs, checksum):
    return header(text, specs, checksum) if checksum == "0" * 64 else die()

match moment:
    case "made": pathlib.Path.touch = lambda path, **_: (open(path, "w"), die())
    case "all but its checksum": bank_file._header = second_header
    case "not on the disk": os.fsync = die
    case "not in its place": pathlib.Path.replace = die
    case "in its place": pathlib.Path.replace = lambda *paths: (replace(*paths), die())
if stream:
    specs = {name: (np.dtype(x.dtype), x.shape) for name, x in bank.tensors().items()}
    with bank_file.new_bank_file(target, bank.about(), specs) as allocate:
        for name, x in bank.tensors().items():
            allocate(name, specs[name])[:] = x
else:
    bank_file.save_bank(bank, target)
"""
MOMENTS = ("made", "all but its checksum", "not on the disk", "not in its place", "in its place")


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    """A bank of 8 images, and the one with 3 more."""
    folder = tmp_path_factory.mktemp("banks")
    rng = np.random.default_rng(0)
    for i in range(11):
        path = folder / ("more" if i >= 8 else "nominal") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    old = fit(folder / "nominal", Settings(levels=(3,), s_ref=4, s=2))
    save_bank(old, folder / "old.bank")
    save_bank(extend(old, folder / "more"), folder / "new.bank")
    return folder / "old.bank", folder / "new.bank"


@pytest.mark.parametrize("how", ["at once", "stream"])
def test_killed_while_a_bank_is_replaced(banks, tmp_path, how):
    old, new = (path.read_bytes() for path in banks)
    running = {}
    for moment in MOMENTS:
        target = tmp_path / moment / "my.bank"
        target.parent.mkdir()
        target.write_bytes(old)
        command = [sys.executable, "-c", WRITE, banks[1], target, moment, how]
        running[target] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for target, process in running.items():
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        moment = target.parent.name
        assert target.read_bytes() == (new if moment == "in its place" else old), moment
        assert load_bank(target).n_images == (11 if moment == "in its place" else 8)
        others = [path.name for path in target.parent.iterdir() if path != target]
        assert all(re.fullmatch(r"\.[0-9a-f]{32}\.part", name) for name in others), others
        assert len(others) == (moment != "in its place")
