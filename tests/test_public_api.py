"""The public names: all there, and the solver without the rest."""

import subprocess
import sys

import pytest

import sfrjax


def test_every_public_name_resolves():
    for name in sfrjax.__all__:
        assert getattr(sfrjax, name) is not None
    assert set(sfrjax.__all__) <= set(dir(sfrjax))
    with pytest.raises(AttributeError, match="no attribute 'torch'"):
        _ = sfrjax.torch


def test_the_solver_needs_jax_alone():
    code = (
        "import sys, sfrjax; sfrjax.omp\n"
        "heavy = {'flax', 'matplotlib', 'typer', 'rich', 'PIL', 'safetensors', 'httpx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_never_needs_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import sfrjax.cli, sfrjax.pipeline, sfrjax.report\n"
        "from sfrjax import load_backbone\n"
        "load_backbone('efficientnet_lite0', levels=(2,))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
