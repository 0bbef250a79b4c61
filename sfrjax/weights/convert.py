"""Checkpoint -> safetensors with folded parameters and provenance, which loads without any further work."""

import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from sfrjax.backbones.loading import describe, folded_parameters, network_config
from sfrjax.files import replacing
from sfrjax.weights.catalogue import CATALOGUE
from sfrjax.weights.fetch import locate
from sfrjax.weights.opening import open_weights


def convert(name: str, output: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> Path:
    """Writes a backbone's folded float32 parameters to a .safetensors file, whole or not at all.

    The file holds PATH.kernel and PATH.bias of every convolution and, in its metadata under "sfrjax", JSON with the
    backbone, how its network differs from the default, the preprocessing, and where the weights came from (file,
    SHA-256, licence where known, the original's own metadata).

    Args:
        name: backbone or catalogue name.
        output: the file to write.
        weights: the checkpoint; default the named weights.

    Raises:
        SfrjaxError: as `load_backbone`; or the output cannot be written.
    """
    output = Path(output)
    backbone, config = network_config(name)
    located = locate(name, weights)
    file = open_weights(located.path)
    config, parameters = folded_parameters(backbone, config, file)
    entries = [e for e in CATALOGUE.values() if located.sha256.startswith(e.sha256)]
    description = {
        **describe(backbone, config),
        "provenance": {
            "file": located.path.name,
            "sha256": located.sha256,
            "weights": entries[0].name if entries else located.name,
            "licence": entries[0].licence if entries else "unknown",
            "metadata": file.metadata,
            "sfrjax_version": version("sfrjax"),
        },
    }
    tensors: dict[str, np.ndarray] = {}
    for path, kernel, bias in parameters:
        tensors[f"{path}.kernel"], tensors[f"{path}.bias"] = np.ascontiguousarray(kernel), bias
    with replacing(output) as temporary:
        try:
            save_file(tensors, temporary, {"sfrjax": json.dumps(description)})
        except SafetensorError as error:  # which a full disk is reported as
            raise OSError(str(error)) from error
    return output
