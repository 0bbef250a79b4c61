"""The first cases of scripts/fuzz.py: no traceback, no half-written output, every message names its file or option."""

import importlib.util
from pathlib import Path


def test_damaged_files_and_senseless_arguments():
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[1] / "scripts" / "fuzz.py")
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    fuzz.SECONDS_PER_CASE = 600  # a hang ends, a busy machine is no fault
    counts, failures = fuzz.fuzz(seed=5, cases=60)
    assert sum(counts.values()) == 60
    assert not failures, "\n\n".join(failures)
