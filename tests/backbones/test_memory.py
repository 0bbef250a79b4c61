"""Loading never holds much more than the parameters, whatever kind of file they come from."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from tests.backbones import torch_reference  # noqa: E402

PEAK_OF_LOADING = """
import re, sys
import jax
from sfrjax.backbones import load_backbone
load_backbone("resnet18", levels=(1,), weights=sys.argv[2])  # what is allocated once, whatever the size of the file
memory = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
before = memory("VmRSS")
jax.block_until_ready(load_backbone("resnet34", levels=(4,), weights=sys.argv[1]).state)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_peak_memory_of_loading(tmp_path, half):
    """At most 2.2 times the file; float16 values alone become twice the file in float32."""
    for name in ("resnet34", "resnet18"):
        state = torch_reference.build(name).state_dict()
        torch.save({k: v.half() if half else v for k, v in state.items()}, tmp_path / f"{name}.pth")
    files = [tmp_path / "resnet34.pth", tmp_path / "resnet18.pth"]
    command = [sys.executable, "-c", PEAK_OF_LOADING, *map(str, files)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak <= 2.2 * files[0].stat().st_size
