"""Random checkpoints of any architecture, on disk."""

import sys

import pytest


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(name) -> (torch model, path of its state dictionary as safetensors, torchvision's names)."""

    from safetensors.torch import save_file

    from tests.backbones import torch_reference

    def make(name, *, metadata=None, **options):
        model = torch_reference.build(name, **options)
        path = tmp_path / f"{name}.safetensors"
        save_file(model.state_dict(), path, metadata)
        return model, path

    return make


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    """torch's threads wait for each other by spinning, which on a busy machine costs far more than it gains."""
    torch = sys.modules.get("torch")  # the tests that need it have imported it by now
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
