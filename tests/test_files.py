"""Files are whole or absent, readable as the umask has it, and what killed runs left behind goes away."""

import os
import time

import pytest

from sfrjax import files
from sfrjax.errors import SfrjaxError
from sfrjax.files import replacing


@pytest.fixture(autouse=True)
def _new_process():
    files._remove_leftovers.cache_clear()


def test_the_old_content_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_failure_to_write_names_the_file(tmp_path):
    with (
        pytest.raises(SfrjaxError, match=r"a\.txt: cannot be written .*nothing was changed"),
        replacing(tmp_path / "a.txt"),
    ):
        raise OSError(28, "No space left on device")


def test_permissions_are_the_umask_s(tmp_path):
    old = os.umask(0o022)
    try:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.unlink()
            temporary.touch(mode=0o600)  # as the safetensors library does
    finally:
        os.umask(old)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_leftovers_of_killed_runs_are_removed_when_they_are_old(tmp_path):
    old, young, other = tmp_path / f".{'a' * 32}.part", tmp_path / f".{'b' * 32}.part", tmp_path / ".my.part"
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 2 * files.STALE,) * 2)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([young.name, other.name, "a.txt"])
