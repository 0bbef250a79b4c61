"""Shared fixtures: where the real data lives, and which tests need it."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

# The same examples in every run: a rare one must not stop an unrelated change. New ones with SFRJAX_EXPLORE=1.
hypothesis.settings.register_profile("suite", derandomize=True, database=None)
hypothesis.settings.register_profile("explore", database=None)
hypothesis.settings.load_profile("explore" if os.environ.get("SFRJAX_EXPLORE") else "suite")


@pytest.fixture(autouse=True)
def _forget_compiled_programs() -> Iterator[None]:
    """Free compiled programs in time: each holds hundreds of memory maps, and Linux aborts a process at 65,530."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data and weights; tests that ask for it are skipped, saying so, where it is absent."""
    root = Path(os.environ.get("SFRJAX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real data not found at {root} (set SFRJAX_DATA to use another folder)")
    return root
