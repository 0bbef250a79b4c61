"""The memory bank: nominal features and their Gram matrices, and the shapes of both before there are any."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from sfrjax.backbones import Backbone, Preprocess, level_shapes
from sfrjax.errors import SfrjaxError
from sfrjax.reconstruction import Dictionary
from sfrjax.scoring import threshold_from_nominal
from sfrjax.settings import BANK_FIELDS, Level, Settings
from sfrjax.version import __version__

# Nominal images scored against the others to set the threshold: all of them, or this many spread evenly.
CALIBRATION_IMAGES = 512

LevelShape = tuple[int, int, int]
TensorSpec = tuple[np.dtype, tuple[int, ...]]
Tensors = dict[str, Any]  # by name: jax.Array, np.ndarray, or a map of a file


@dataclass(frozen=True)
class Bank:
    """Everything `predict` needs besides the network.

    Attributes:
        settings: what the bank was built with.
        weights_name, weights_sha256, preprocess: the network's weights and the input they expect.
        shapes: (h, w, c) of each scoring level.
        scoring: dictionaries of the scoring levels, in the order of settings.levels.
        reference: dictionary of the reference level; None unless sampling is "subspace".
        nominal_scores: float32 [M], leave-one-out image scores of (up to 512 of) the nominal images.
        images: names of the nominal images' files, in the bank's order.
        image_sha256: uint8 [N, 32], SHA-256 of those files.
        version: of sfrjax, that built it.
    """

    settings: Settings
    weights_name: str
    weights_sha256: str
    preprocess: Preprocess
    shapes: tuple[LevelShape, ...]
    scoring: tuple[Dictionary, ...]
    reference: Dictionary | None
    nominal_scores: np.ndarray
    images: tuple[str, ...]
    image_sha256: np.ndarray
    version: str = __version__

    @property
    def n_images(self) -> int:
        """Number of nominal images."""
        return self.scoring[0].n_images

    @property
    def threshold(self) -> float:
        """Image score above which an image is anomalous; holds for the bank's own settings (threshold_from_nominal)."""
        return threshold_from_nominal(self.nominal_scores, self.settings.quantile)

    def check(self, backbone: Backbone, settings: Settings) -> None:
        """Raise SfrjaxError where the network or the settings are not those the bank was built with."""
        if backbone.weights_sha256 != self.weights_sha256:
            raise SfrjaxError(
                f"the bank was built with the weights {self.weights_name} (SHA-256 {self.weights_sha256[:12]}...), not "
                f"with {backbone.weights_name} ({backbone.weights_sha256[:12]}...); give --weights the file that "
                "`fit` had, or fit again"
            )
        for name in BANK_FIELDS:
            ours, theirs = getattr(self.settings, name), getattr(settings, name)
            if ours != theirs:
                raise SfrjaxError(f"the bank was built with {name} = {ours}, not {theirs}; fit again to change it")
        if settings.sampling == "subspace" and (
            self.reference is None or settings.reference != self.settings.reference
        ):
            held = self.settings.reference if self.reference is not None else "none"
            raise SfrjaxError(
                f"the bank holds reference level {held}, not {settings.reference}; fit again to change it"
            )
        if settings.mode == "pixel" and settings.sampling == "none" and any(d.gram is None for d in self.scoring):
            raise SfrjaxError("the bank was built for pixel mode with sampling; fit again for --sampling none")
        settings.check_bank_size(self.n_images, "the bank")

    def about(self) -> dict[str, Any]:
        """What a bank file holds as JSON; `assembled` is the inverse of this and `tensors`."""
        return {
            "version": self.version,
            "settings": self.settings.to_dict(),
            "weights_name": self.weights_name,
            "weights_sha256": self.weights_sha256,
            "preprocess": self.preprocess.to_dict(),
            "shapes": [list(shape) for shape in self.shapes],
            "images": list(self.images),
        }

    def tensors(self) -> Tensors:
        """What a bank file holds as tensors: those of `tensor_specs`."""
        tensors: Tensors = {"nominal_scores": self.nominal_scores, "image_sha256": self.image_sha256}
        named = dict(zip(map(str, self.settings.levels), self.scoring, strict=True))
        for key in bank_layout(self.settings):
            dictionary = named.get(key, self.reference)
            assert dictionary is not None
            tensors[f"{key}.atoms"] = dictionary.atoms
            if dictionary.gram is not None:
                tensors[f"{key}.gram"] = dictionary.gram
        return tensors


def assembled(about: dict[str, Any], tensors: Tensors) -> Bank:
    """The bank of a file's JSON and tensors.

    Raises:
        SfrjaxError, LookupError, TypeError, ValueError, AttributeError: they do not fit each other.
    """
    settings = Settings.from_dict(about["settings"])
    shapes: tuple[LevelShape, ...] = tuple((int(h), int(w), int(c)) for h, w, c in about["shapes"])
    if len(shapes) != len(settings.levels) or not all(isinstance(name, str) for name in about["images"]):
        raise ValueError("levels or names are wrong")
    if not all(isinstance(about[name], str) for name in ("weights_name", "weights_sha256", "version")):
        raise ValueError("the names of weights or version are wrong")
    known = dict(zip(settings.levels, shapes, strict=True))
    if "reference" in bank_layout(settings):
        known.setdefault(settings.reference, (1, 1, tensors["reference.atoms"].shape[-1]))
    specs = tensor_specs(known, settings, len(about["images"]))
    for name, (dtype, shape) in specs.items():
        if (tensors[name].dtype, tensors[name].shape) != (dtype, shape):
            raise ValueError(f"{name} is wrong")
    if set(tensors) != set(specs) or not np.isfinite(tensors["nominal_scores"]).all():
        raise ValueError("tensors or nominal scores are wrong")
    dictionaries = {
        key: Dictionary(tensors[f"{key}.atoms"], tensors.get(f"{key}.gram")) for key in bank_layout(settings)
    }
    reference = None
    if settings.sampling == "subspace":
        reference = dictionaries.get("reference") or dictionaries[str(settings.reference)]
    return Bank(
        settings=settings,
        weights_name=about["weights_name"],
        weights_sha256=about["weights_sha256"],
        preprocess=Preprocess.from_dict(about["preprocess"]),
        shapes=shapes,
        scoring=tuple(dictionaries[str(level)] for level in settings.levels),
        reference=reference,
        nominal_scores=tensors["nominal_scores"],
        images=tuple(about["images"]),
        image_sha256=tensors["image_sha256"],
        version=about["version"],
    )


def tensor_specs(shapes: dict[Level, LevelShape], settings: Settings, n_images: int) -> dict[str, TensorSpec]:
    """(dtype, shape) of every tensor of a bank of n_images, from the (h, w, c) of the levels."""
    single = np.dtype(np.float32)
    specs: dict[str, TensorSpec] = {
        "nominal_scores": (single, (min(n_images, CALIBRATION_IMAGES),)),
        "image_sha256": (np.dtype(np.uint8), (n_images, 32)),
    }
    for key, (level, pixelwise) in bank_layout(settings).items():
        h, w, c = shapes[level]
        atoms = (h * w, n_images, c) if pixelwise else (n_images, h * w * c)
        specs[f"{key}.atoms"] = (atoms_dtype(settings), atoms)
        if not pixelwise or positions_keep_gram(settings, n_images, c):
            specs[f"{key}.gram"] = (single, (*atoms[:-1], n_images))
    return specs


def positions_keep_gram(settings: Settings, n_images: int, channels: int) -> bool:
    """Whether a per-pixel bank keeps a level's Gram matrices: with sampling not where they outgrow its features."""
    return settings.sampling == "none" or 4 * n_images <= atoms_dtype(settings).itemsize * channels


def bank_bytes(backbone: Backbone, settings: Settings, n_images: int) -> int:
    """Size in bytes of the features and Gram matrices (all but a few bytes an image) of a bank before it is built."""
    specs = bank_specs(backbone, settings, n_images)
    return sum(spec_bytes(spec) for name, spec in specs.items() if name.endswith((".atoms", ".gram")))


def bank_specs(backbone: Backbone, settings: Settings, n_images: int) -> dict[str, TensorSpec]:
    """(dtype, shape) of every tensor of a bank before it is built."""
    return tensor_specs(bank_shapes(backbone, settings), settings, n_images)


def spec_bytes(spec: TensorSpec) -> int:
    """Size in bytes of a tensor."""
    dtype, shape = spec
    return dtype.itemsize * math.prod(shape)


def new_about(backbone: Backbone, settings: Settings, images: Sequence[str]) -> dict[str, Any]:
    """The JSON of a bank yet to be built (see `Bank.about`)."""
    shapes = bank_shapes(backbone, settings)
    return {
        "version": __version__,
        "settings": settings.to_dict(),
        "weights_name": backbone.weights_name,
        "weights_sha256": backbone.weights_sha256,
        "preprocess": backbone.preprocess.to_dict(),
        "shapes": [list(shapes[level]) for level in settings.levels],
        "images": list(images),
    }


def on_disk(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor stays on disk in a streamed bank: the features that are scored, and per-pixel Gram matrices."""
    if name.startswith("reference"):
        return False
    return name.endswith(".atoms") or (name.endswith(".gram") and len(spec[1]) == 3)


def atoms_dtype(settings: Settings) -> np.dtype:
    """In which features are kept."""
    return np.dtype(ml_dtypes.bfloat16 if settings.atoms_dtype == "bfloat16" else settings.atoms_dtype)


def bank_shapes(backbone: Backbone, settings: Settings) -> dict[Level, LevelShape]:
    """(h, w, c) of the network's levels at the settings' image size."""
    return level_shapes(backbone, (settings.image_size, settings.image_size))


def bank_layout(settings: Settings) -> dict[str, tuple[Level, bool]]:
    """{key: (level, pixelwise)} of the dictionaries to keep; a reference that is also scored is kept once."""
    pixelwise = settings.mode == "pixel"
    layout = {str(level): (level, pixelwise) for level in settings.levels}
    if settings.sampling == "subspace" and (pixelwise or settings.reference not in settings.levels):
        layout["reference"] = (settings.reference, False)
    return layout
