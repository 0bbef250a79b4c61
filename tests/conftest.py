"""Shared fixtures: where the real data lives, and which tests need it."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data and weights; tests that ask for it are skipped, saying so, where it is absent."""
    root = Path(os.environ.get("SFRJAX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real data not found at {root} (set SFRJAX_DATA to use another folder)")
    return root
