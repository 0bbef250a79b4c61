"""What a checkpoint's own metadata says about how its network differs from torchvision's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfrjax.errors import SfrjaxError

_NUMBER = r"\s*([0-9.]+)\s*"
_TRIPLE = rf"\({_NUMBER},{_NUMBER},{_NUMBER}\)"
_INPUT = re.compile(rf"(RGB|BGR),\s*0\.\.(255|1),\s*minus\s*{_TRIPLE}(?:,\s*divided by\s*{_TRIPLE})?", re.IGNORECASE)


def conventions(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Reads the keys that change the network; others (source, licence, ...) are left alone.

    * `batch_norm_eps`: a positive number.
    * `stage_stride`: "first 1x1 conv ..." (the original ResNet) or "3x3 conv ..." (torchvision).
    * `input`: "RGB|BGR, 0..255|0..1, minus (a, b, c)[, divided by (d, e, f)]", in the stated channel order.
    * `pool_padding`: "zeros, 1" or "-inf, 1", which are the same thing behind a ReLU.

    Returns:
        The fields among batch_norm_eps (float), stride_on_first (bool) and preprocess (dict) that the file states.

    Raises:
        SfrjaxError: a value that is not understood, since guessing would give other features.
    """
    found: dict[str, Any] = {}

    def refuse(key: str) -> SfrjaxError:
        return SfrjaxError(f"{path}: its metadata says {key}: {metadata[key]!r}, which sfrjax does not understand")

    if "batch_norm_eps" in metadata:
        try:
            found["batch_norm_eps"] = float(metadata["batch_norm_eps"])
        except ValueError as e:
            raise refuse("batch_norm_eps") from e
        if not 0 < found["batch_norm_eps"] < 1:
            raise refuse("batch_norm_eps")
    if "stage_stride" in metadata:
        if not metadata["stage_stride"].startswith(("first 1x1 conv", "3x3 conv")):
            raise refuse("stage_stride")
        found["stride_on_first"] = metadata["stage_stride"].startswith("first 1x1 conv")
    if metadata.get("pool_padding", "zeros, 1") not in ("zeros, 1", "-inf, 1"):
        raise refuse("pool_padding")
    if "input" in metadata:
        match = _INPUT.fullmatch(metadata["input"].strip())
        if match is None:
            raise refuse("input")
        order, top, *numbers = match.groups(default="1")
        try:
            values = [float(v) for v in numbers]
        except ValueError as e:
            raise refuse("input") from e
        found["preprocess"] = {
            "channels": order.lower(),
            "scale": 1.0 if top == "255" else 1 / 255,
            "mean": values[:3],
            "std": values[3:],
        }
    return found
