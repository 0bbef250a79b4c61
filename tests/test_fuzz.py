"""A short run of scripts/fuzz.py: no traceback, no half-written output, every message names its file or option."""

import importlib.util
from pathlib import Path


def test_damaged_files_and_senseless_arguments():
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[1] / "scripts" / "fuzz.py")
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    counts, failures = fuzz.fuzz(seed=5, seconds=20)
    assert sum(counts.values()) > 20
    assert not failures, "\n\n".join(failures)
