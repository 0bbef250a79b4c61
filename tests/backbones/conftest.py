"""Random checkpoints of any architecture, on disk."""

import pytest
from safetensors.torch import save_file

from tests.backbones import torch_reference


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(name) -> (torch model, path of its state dictionary as safetensors, torchvision's names)."""

    def make(name, *, metadata=None, **options):
        model = torch_reference.build(name, **options)
        path = tmp_path / f"{name}.safetensors"
        save_file(model.state_dict(), path, metadata)
        return model, path

    return make
