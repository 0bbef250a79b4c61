"""The memory bank: nominal features and their Gram matrices, built once, image after image."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from sfrjax.backbones import Backbone, Preprocess, level_shapes
from sfrjax.errors import SfrjaxError
from sfrjax.features import Batch, extract
from sfrjax.gram import fill_gram
from sfrjax.memory import aligned_empty
from sfrjax.progress import tracked
from sfrjax.reconstruction import Dictionary, residual_norms
from sfrjax.scoring import anomaly_maps, threshold_from_nominal
from sfrjax.settings import BANK_FIELDS, Level, Settings
from sfrjax.version import __version__

# Nominal images scored against the others to set the threshold: all of them, or this many spread evenly.
CALIBRATION_IMAGES = 512
COPY_ROWS = 64  # images copied at a time from a bank that grows

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
        for key in _layout(self.settings):
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
    if "reference" in _layout(settings):
        known.setdefault(settings.reference, (1, 1, tensors["reference.atoms"].shape[-1]))
    specs = tensor_specs(known, settings, len(about["images"]))
    for name, (dtype, shape) in specs.items():
        if (tensors[name].dtype, tensors[name].shape) != (dtype, shape):
            raise ValueError(f"{name} is wrong")
    if set(tensors) != set(specs) or not np.isfinite(tensors["nominal_scores"]).all():
        raise ValueError("tensors or nominal scores are wrong")
    dictionaries = {key: Dictionary(tensors[f"{key}.atoms"], tensors.get(f"{key}.gram")) for key in _layout(settings)}
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
    atoms_dtype = _atoms_dtype(settings)
    single = np.dtype(np.float32)
    specs: dict[str, TensorSpec] = {
        "nominal_scores": (single, (min(n_images, CALIBRATION_IMAGES),)),
        "image_sha256": (np.dtype(np.uint8), (n_images, 32)),
    }
    for key, (level, pixelwise) in _layout(settings).items():
        h, w, c = shapes[level]
        atoms = (h * w, n_images, c) if pixelwise else (n_images, h * w * c)
        specs[f"{key}.atoms"] = (atoms_dtype, atoms)
        if not pixelwise or positions_keep_gram(settings, n_images, c):
            specs[f"{key}.gram"] = (single, (*atoms[:-1], n_images))
    return specs


def positions_keep_gram(settings: Settings, n_images: int, channels: int) -> bool:
    """Whether a per-pixel bank keeps a level's Gram matrices: with sampling not where they outgrow its features."""
    return settings.sampling == "none" or 4 * n_images <= _atoms_dtype(settings).itemsize * channels


def bank_bytes(backbone: Backbone, settings: Settings, n_images: int) -> int:
    """Size in bytes of the features and Gram matrices (all but a few bytes an image) of a bank before it is built."""
    specs = bank_specs(backbone, settings, n_images)
    return sum(spec_bytes(spec) for name, spec in specs.items() if name.endswith((".atoms", ".gram")))


def bank_specs(backbone: Backbone, settings: Settings, n_images: int) -> dict[str, TensorSpec]:
    """(dtype, shape) of every tensor of a bank before it is built."""
    return tensor_specs(_shapes(backbone, settings), settings, n_images)


def spec_bytes(spec: TensorSpec) -> int:
    """Size in bytes of a tensor."""
    dtype, shape = spec
    return dtype.itemsize * math.prod(shape)


def new_about(backbone: Backbone, settings: Settings, images: Sequence[str]) -> dict[str, Any]:
    """The JSON of a bank yet to be built (see `Bank.about`)."""
    shapes = _shapes(backbone, settings)
    return {
        "version": __version__,
        "settings": settings.to_dict(),
        "weights_name": backbone.weights_name,
        "weights_sha256": backbone.weights_sha256,
        "preprocess": backbone.preprocess.to_dict(),
        "shapes": [list(shapes[level]) for level in settings.levels],
        "images": list(images),
    }


def build_bank(
    backbone: Backbone,
    settings: Settings,
    batches: Iterable[Batch],
    paths: Sequence[Path],
    batch_size: int,
    *,
    base: Bank | None = None,
    allocate: Callable[[str, TensorSpec], np.ndarray] | None = None,
    progress: bool = False,
) -> Bank:
    """Extract the features of the nominal images, batch by batch, into a bank allocated up front.

    Args:
        backbone: network loaded for settings.feature_levels.
        settings: the method's settings.
        batches: the images of `paths`, in that order.
        paths: nominal images.
        batch_size: nominal images scored per step, once the bank is built.
        base: a bank of the same settings and weights, whose images come first.
        allocate: returns the zero array to fill in for a tensor's name and spec (a map of a file); in memory if None.
        progress: show progress bars on standard error.

    Raises:
        SfrjaxError: the features are not finite, or too large for settings.atoms_dtype.
    """
    first = 0 if base is None else base.n_images
    names = (*(() if base is None else base.images), *(path.name for path in paths))
    specs = bank_specs(backbone, settings, len(names))
    tensors: Tensors = {name: (allocate or _allocate)(name, spec) for name, spec in specs.items()}
    if base is not None:
        _copy(base, tensors)
    _fill_atoms(backbone, settings, batches, tensors, first)
    known = {} if base is None else base.tensors()
    for name in [name for name in specs if name.endswith(".gram")]:
        old = None if name not in known else np.asarray(known[name])
        fill_gram(tensors[name], tensors[name.replace(".gram", ".atoms")], old, progress=progress)
    for name, tensor in tensors.items():
        if name.endswith((".atoms", ".gram")) and (allocate is None or not on_disk(name, specs[name])):
            tensors[name] = jax.device_put(tensor)
    bank = assembled(new_about(backbone, settings, names), tensors)
    bank.nominal_scores[:] = _leave_one_out(bank, _shapes(backbone, settings), batch_size, progress=progress)
    return bank


def on_disk(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor stays on disk in a streamed bank: the features that are scored, and per-pixel Gram matrices."""
    if name.startswith("reference"):
        return False
    return name.endswith(".atoms") or (name.endswith(".gram") and len(spec[1]) == 3)


def file_sha256(path: Path) -> bytes:
    """SHA-256 of a file. Raises SfrjaxError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise SfrjaxError(f"{path} cannot be read ({error.strerror or error})") from error


def _allocate(name: str, spec: TensorSpec) -> Any:
    """An array in memory: of atoms on the device, otherwise on the host, where it is filled."""
    dtype, shape = spec
    if name.endswith(".atoms"):
        return jnp.zeros(shape, dtype)
    array = aligned_empty(shape, dtype)
    array[...] = 0
    return array


def _copy(base: Bank, tensors: Tensors) -> None:
    """The images of a bank that grows: their features and hashes, a few images at a time."""
    tensors["image_sha256"][: base.n_images] = base.image_sha256
    for name, old in base.tensors().items():
        if name.endswith(".atoms"):
            host = np.asarray(old)
            for start in range(0, base.n_images, COPY_ROWS):
                rows = host[..., start : start + COPY_ROWS, :]
                tensors[name] = _put(tensors[name], rows, start)


def _fill_atoms(backbone: Backbone, settings: Settings, batches: Iterable[Batch], tensors: Tensors, start: int) -> None:
    """Write the features and hashes of the images from `start` on."""
    known = {bytes(digest) for digest in tensors["image_sha256"][:start]}
    total = jnp.float32(0)
    for batch in batches:
        features = extract(backbone, batch.images, neighbourhood=settings.neighbourhood)
        # Wait for the step before this one: unbounded, the queue would hold the features of every batch.
        jax.block_until_ready((total, tensors))
        for i, path in enumerate(batch.paths):
            digest = file_sha256(path)
            if digest in known:
                raise SfrjaxError(f"{path}: the bank holds this image already; leave it out")
            tensors["image_sha256"][start + i] = np.frombuffer(digest, np.uint8)
        for key, (level, pixelwise) in _layout(settings).items():
            atoms = tensors[f"{key}.atoms"]
            rows, size = _rows(features[level][: len(batch.paths)], pixelwise=pixelwise, dtype=np.dtype(atoms.dtype))
            tensors[f"{key}.atoms"] = _put(atoms, rows, start)
            total += size
        start += len(batch.paths)
    # A NaN or an infinity anywhere in a map reaches this sum.
    if not np.isfinite(total):
        raise SfrjaxError(
            f"{backbone.weights_name}: the features of the nominal images are not finite, or too large for "
            f"--atoms-dtype {settings.atoms_dtype}"
        )


@partial(jax.jit, static_argnames=("pixelwise", "dtype"))
def _rows(features: jax.Array, *, pixelwise: bool, dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    """Features [n, h, w, c] as atoms [n, h*w*c] or [h*w, n, c] of a dtype, and their sum in float32."""
    n, h, w, c = features.shape
    rows = features.reshape(n, h * w, c).swapaxes(0, 1) if pixelwise else features.reshape(n, -1)
    rows = rows.astype(dtype)
    return rows, jnp.sum(rows.astype(jnp.float32))


def _put(atoms: jax.Array | np.ndarray, rows: jax.Array | np.ndarray, start: int) -> jax.Array | np.ndarray:
    """Write rows as atoms start, start + 1, ..., in place."""
    if isinstance(atoms, np.ndarray):
        atoms[..., start : start + rows.shape[-2], :] = np.asarray(rows)
        return atoms
    return _update(atoms, rows, start)


@partial(jax.jit, donate_argnums=0)
def _update(atoms: jax.Array, rows: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(atoms, rows, start, axis=-2)


def _leave_one_out(bank: Bank, shapes: dict[Level, LevelShape], batch_size: int, *, progress: bool) -> np.ndarray:
    """float32 [M], the nominal scores: each nominal image reconstructed from the other N - 1."""
    settings, n = bank.settings, bank.n_images
    chosen = np.unique(np.linspace(0, n - 1, min(n, CALIBRATION_IMAGES)).round().astype(np.int32))
    batches = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    scores = []
    for rows in tracked(batches, "Threshold", len(chosen), len, shown=progress):
        indices = np.resize(rows, batch_size)
        allowed = np.where(np.arange(n) == indices[:, None], -1, np.arange(n)).astype(np.int32)
        features = tuple(
            _nominal_features(dictionary, indices, shape)
            for dictionary, shape in zip(bank.scoring, bank.shapes, strict=True)
        )
        reference = None
        if bank.reference is not None:
            reference = _nominal_features(bank.reference, indices, shapes[settings.reference])
        norms = residual_norms(
            bank.scoring, bank.reference, features, reference, jnp.asarray(allowed), settings=settings
        )
        _, batch_scores = anomaly_maps(norms, size=settings.image_size, sigma=settings.sigma)
        scores.append(np.asarray(batch_scores)[: len(rows)])
    return np.concatenate(scores)


def _nominal_features(dictionary: Dictionary, indices: np.ndarray, shape: LevelShape) -> jax.Array:
    """float32 [B, h, w, c]: nominal images' features, taken back out of the bank."""
    atoms = dictionary.atoms
    rows = atoms[indices] if atoms.ndim == 2 else atoms[:, indices].swapaxes(0, 1)
    return jnp.asarray(rows, jnp.float32).reshape(len(indices), *shape)


def _atoms_dtype(settings: Settings) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if settings.atoms_dtype == "bfloat16" else settings.atoms_dtype)


def _shapes(backbone: Backbone, settings: Settings) -> dict[Level, LevelShape]:
    return level_shapes(backbone, (settings.image_size, settings.image_size))


def _layout(settings: Settings) -> dict[str, tuple[Level, bool]]:
    """{key: (level, pixelwise)} of the dictionaries to keep; a reference that is also scored is kept once."""
    pixelwise = settings.mode == "pixel"
    layout = {str(level): (level, pixelwise) for level in settings.levels}
    if settings.sampling == "subspace" and (pixelwise or settings.reference not in settings.levels):
        layout["reference"] = (settings.reference, False)
    return layout
