"""Anomaly localisation by subspace-guided feature reconstruction (arXiv 2309.13904).

The public names below are imported when they are first used, so that `sfrjax.omp` needs neither Flax nor the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfrjax.backbones import load_backbone
    from sfrjax.bank import Bank
    from sfrjax.bank_file import load_bank, save_bank
    from sfrjax.check import check_dataset, check_images
    from sfrjax.datasets import load_dataset
    from sfrjax.errors import SfrjaxError
    from sfrjax.evaluation import evaluate
    from sfrjax.pipeline import Prediction, extend, fit, localise, predict
    from sfrjax.pursuit import SparseCode, omp
    from sfrjax.runs import demo
    from sfrjax.settings import PRESETS, Settings
    from sfrjax.version import __version__

_HOME = {
    "Bank": "bank",
    "PRESETS": "settings",
    "Prediction": "pipeline",
    "Settings": "settings",
    "SfrjaxError": "errors",
    "SparseCode": "pursuit",
    "__version__": "version",
    "check_dataset": "check",
    "check_images": "check",
    "demo": "runs",
    "evaluate": "evaluation",
    "extend": "pipeline",
    "fit": "pipeline",
    "load_backbone": "backbones",
    "load_bank": "bank_file",
    "load_dataset": "datasets",
    "localise": "pipeline",
    "omp": "pursuit",
    "predict": "pipeline",
    "save_bank": "bank_file",
}

__all__ = [
    "PRESETS",
    "Bank",
    "Prediction",
    "Settings",
    "SfrjaxError",
    "SparseCode",
    "__version__",
    "check_dataset",
    "check_images",
    "demo",
    "evaluate",
    "extend",
    "fit",
    "load_backbone",
    "load_bank",
    "load_dataset",
    "localise",
    "omp",
    "predict",
    "save_bank",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'sfrjax' has no attribute {name!r}")
    value = getattr(import_module(f"sfrjax.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
