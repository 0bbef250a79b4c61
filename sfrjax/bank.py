"""The memory bank: nominal features and their Gram matrices, built once, kept in one safetensors file."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sfrjax.backbones import Backbone, Preprocess, level_shapes
from sfrjax.errors import SfrjaxError
from sfrjax.features import Batch, extract
from sfrjax.files import replacing
from sfrjax.reconstruction import Dictionary, residual_norms
from sfrjax.scoring import anomaly_maps, threshold_from_nominal
from sfrjax.settings import BANK_FIELDS, Level, Settings
from sfrjax.version import __version__

FORMAT = 2
# Nominal images scored against the others to set the threshold: all of them, or this many spread evenly.
CALIBRATION_IMAGES = 128
# Columns of one product in a full-vector Gram matrix: short sums keep float32 accurate over half a million terms.
GRAM_COLUMNS = 16384

LevelShape = tuple[int, int, int]


@dataclass(frozen=True)
class Bank:
    """Everything `predict` needs besides the network.

    Attributes:
        settings: what the bank was built with.
        weights_name, weights_sha256, preprocess: the network's weights and the input they expect.
        shapes: (h, w, c) of each scoring level.
        scoring: dictionaries of the scoring levels, in the order of settings.levels.
        reference: dictionary of the reference level; None unless sampling is "subspace".
        nominal_scores: float32 [M], leave-one-out image scores of (up to 128 of) the nominal images.
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
        if settings.mode == "pixel" and settings.sampling == "none" and self.scoring[0].gram is None:
            raise SfrjaxError("the bank was built for pixel mode with sampling; fit again for --sampling none")
        settings.check_bank_size(self.n_images, "the bank")


def bank_bytes(backbone: Backbone, settings: Settings, n_images: int) -> int:
    """Size in bytes of the bank (in memory and, but for a header, on disk) before it is built."""
    shapes = level_shapes(backbone, (settings.image_size, settings.image_size))
    total = 0
    for level, pixelwise in _layout(settings).values():
        h, w, c = shapes[level]
        gram = n_images**2 * (h * w if pixelwise else 1)
        total += 4 * (n_images * h * w * c + (gram if _keeps_gram(pixelwise, settings) else 0))
    return total


def build_bank(
    backbone: Backbone, settings: Settings, batches: Iterable[Batch], n_images: int, batch_size: int
) -> Bank:
    """Extract the features of the nominal images, batch by batch, into a bank allocated up front.

    Args:
        backbone: network loaded for settings.feature_levels.
        settings: the method's settings.
        batches: nominal images, n_images in all.
        n_images: number of nominal images.
        batch_size: nominal images scored per step, once the bank is built.

    Raises:
        SfrjaxError: the features are not finite.
    """
    shapes = level_shapes(backbone, (settings.image_size, settings.image_size))
    layout = _layout(settings)
    atoms = {
        key: jnp.zeros(_atoms_shape(shapes[level], n_images, pixelwise), jnp.float32)
        for key, (level, pixelwise) in layout.items()
    }
    start = 0
    for batch in batches:
        features = extract(backbone, batch.images, neighbourhood=settings.neighbourhood)
        # Wait for the step before this one: unbounded, the queue would hold the features of every batch.
        jax.block_until_ready(atoms)
        count = len(batch.paths)
        for key, (level, pixelwise) in layout.items():
            atoms[key] = _store(atoms[key], features[level][:count], start, pixelwise=pixelwise)
        start += count
    dictionaries = {key: Dictionary(atoms.pop(key), None) for key in layout}
    for key, (_, pixelwise) in layout.items():
        if _keeps_gram(pixelwise, settings):
            dictionaries[key] = dictionaries[key]._replace(gram=_gram(dictionaries[key].atoms))
        # A NaN or an infinity anywhere in a map reaches this sum.
        if not np.isfinite(jnp.sum(dictionaries[key].atoms)):
            raise SfrjaxError(f"{backbone.weights_name}: the features of the nominal images are not finite")
    bank = Bank(
        settings=settings,
        weights_name=backbone.weights_name,
        weights_sha256=backbone.weights_sha256,
        preprocess=backbone.preprocess,
        shapes=tuple(shapes[level] for level in settings.levels),
        scoring=tuple(dictionaries[str(level)] for level in settings.levels),
        reference=_reference(dictionaries, settings),
        nominal_scores=np.zeros(0, np.float32),
    )
    return _calibrated(bank, shapes, batch_size)


def save_bank(bank: Bank, path: str | Path) -> None:
    """Write a bank to one safetensors file whose metadata holds the JSON; whole or not at all.

    Raises:
        SfrjaxError: the file cannot be written; an older file of this name is left as it was.
    """
    tensors = {"nominal_scores": bank.nominal_scores}
    for key, dictionary in _dictionaries(bank).items():
        tensors[f"{key}.atoms"] = np.asarray(dictionary.atoms)
        if dictionary.gram is not None:
            tensors[f"{key}.gram"] = np.asarray(dictionary.gram)
    about = {
        "format": FORMAT,
        "version": bank.version,
        "settings": bank.settings.to_dict(),
        "weights_name": bank.weights_name,
        "weights_sha256": bank.weights_sha256,
        "preprocess": bank.preprocess.to_dict(),
        "shapes": [list(shape) for shape in bank.shapes],
    }
    text = json.dumps(about, sort_keys=True)
    metadata = {"sfrjax_bank": text, "sha256": _digest(text, tensors)}
    with replacing(Path(path), durable=True) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def load_bank(path: str | Path) -> Bank:
    """Read a bank written by `save_bank`.

    Raises:
        SfrjaxError: the file is missing, cut short, altered, not a bank, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise SfrjaxError(f"{path}: no such bank file; make one with `sfrjax fit IMAGES --out {path.name}`")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if "sfrjax_bank" not in metadata:
                raise SfrjaxError(f"{path}: not an sfrjax bank; make one with `sfrjax fit`")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise SfrjaxError(f"{path}: not a whole bank file ({error}); fit again or copy it anew") from error
    if metadata.get("sha256") != _digest(metadata["sfrjax_bank"], tensors):
        raise SfrjaxError(f"{path}: the contents do not match their checksum; fit again or copy it anew")
    try:
        about = json.loads(metadata["sfrjax_bank"])
        if about["format"] != FORMAT:
            raise SfrjaxError(f"a bank of format {about['format']}, and this version reads format {FORMAT}")
        return _assembled(about, tensors)
    except (SfrjaxError, LookupError, TypeError, ValueError, AttributeError) as error:
        # The checksum is the file's own: whoever wrote the file may have written anything.
        raise SfrjaxError(f"{path}: not a bank that sfrjax {__version__} can use ({error}); fit again") from error


def _assembled(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> Bank:
    """A bank from its JSON and tensors; raises ValueError and its like where they do not fit each other."""
    settings = Settings.from_dict(about["settings"])
    shapes: tuple[LevelShape, ...] = tuple((int(h), int(w), int(c)) for h, w, c in about["shapes"])
    scores = tensors["nominal_scores"]
    if len(shapes) != len(settings.levels) or scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ValueError("shapes or nominal scores are wrong")
    n_images = tensors[f"{settings.levels[0]}.atoms"].shape[-2]
    dictionaries = {}
    for key, (level, pixelwise) in _layout(settings).items():
        atoms, gram = tensors[f"{key}.atoms"], tensors.get(f"{key}.gram")
        expected = (
            atoms.shape
            if key == "reference"
            else _atoms_shape(shapes[settings.levels.index(level)], n_images, pixelwise)
        )
        if atoms.shape != expected or atoms.shape[-2] != n_images or not np.isfinite(atoms.sum()):
            raise ValueError(f"the atoms of level {level} are wrong")
        if (gram is not None) != _keeps_gram(pixelwise, settings) or (
            gram is not None and gram.shape != (*atoms.shape[:-1], n_images)
        ):
            raise ValueError(f"the Gram matrix of level {level} is wrong")
        dictionaries[key] = Dictionary(jnp.asarray(atoms), None if gram is None else jnp.asarray(gram))
    return Bank(
        settings=settings,
        weights_name=about["weights_name"],
        weights_sha256=about["weights_sha256"],
        preprocess=Preprocess.from_dict(about["preprocess"]),
        shapes=shapes,
        scoring=tuple(dictionaries[str(level)] for level in settings.levels),
        reference=_reference(dictionaries, settings),
        nominal_scores=scores,
        version=about["version"],
    )


def _layout(settings: Settings) -> dict[str, tuple[Level, bool]]:
    """{key: (level, pixelwise)} of the dictionaries to keep; a reference that is also scored is kept once."""
    pixelwise = settings.mode == "pixel"
    layout = {str(level): (level, pixelwise) for level in settings.levels}
    if settings.sampling == "subspace" and (pixelwise or settings.reference not in settings.levels):
        layout["reference"] = (settings.reference, False)
    return layout


def _dictionaries(bank: Bank) -> dict[str, Dictionary]:
    named = dict(zip(map(str, bank.settings.levels), bank.scoring, strict=True))
    if "reference" in _layout(bank.settings) and bank.reference is not None:
        named["reference"] = bank.reference
    return named


def _reference(dictionaries: dict[str, Dictionary], settings: Settings) -> Dictionary | None:
    if settings.sampling != "subspace":
        return None
    return dictionaries.get("reference") or dictionaries[str(settings.reference)]


def _keeps_gram(pixelwise: bool, settings: Settings) -> bool:
    return not pixelwise or settings.sampling == "none"


def _atoms_shape(shape: LevelShape, n_images: int, pixelwise: bool) -> tuple[int, ...]:
    h, w, c = shape
    return (h * w, n_images, c) if pixelwise else (n_images, h * w * c)


@partial(jax.jit, static_argnames="pixelwise", donate_argnums=0)
def _store(atoms: jax.Array, features: jax.Array, start: int, *, pixelwise: bool) -> jax.Array:
    """Write features [n, h, w, c] as atoms start .. start + n; donation makes it happen in place."""
    n, h, w, c = features.shape
    if pixelwise:
        return jax.lax.dynamic_update_slice(atoms, features.reshape(n, h * w, c).swapaxes(0, 1), (0, start, 0))
    return jax.lax.dynamic_update_slice(atoms, features.reshape(n, -1), (start, 0))


@jax.jit
def _gram(atoms: jax.Array) -> jax.Array:
    """atoms @ atoms.T over the last axis, summed over blocks of columns."""
    gram = jnp.zeros((*atoms.shape[:-1], atoms.shape[-2]), jnp.float32)
    for start in range(0, atoms.shape[-1], GRAM_COLUMNS):
        block = atoms[..., start : start + GRAM_COLUMNS]
        gram += jnp.matmul(block, block.swapaxes(-1, -2), precision=jax.lax.Precision.HIGHEST)
    return gram


def _calibrated(bank: Bank, shapes: dict[Level, LevelShape], batch_size: int) -> Bank:
    """The bank with its leave-one-out nominal scores: each nominal image reconstructed from the other N - 1."""
    settings, n = bank.settings, bank.n_images
    chosen = np.unique(np.linspace(0, n - 1, min(n, CALIBRATION_IMAGES)).round().astype(np.int32))
    scores = []
    for start in range(0, len(chosen), batch_size):
        rows = chosen[start : start + batch_size]
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
    return replace(bank, nominal_scores=np.concatenate(scores))


def _nominal_features(dictionary: Dictionary, indices: np.ndarray, shape: LevelShape) -> jax.Array:
    """float32 [B, h, w, c]: nominal images' features, taken back out of the bank."""
    atoms = dictionary.atoms
    rows = atoms[indices] if atoms.ndim == 2 else atoms[:, indices].swapaxes(0, 1)
    return rows.reshape(len(indices), *shape)


def _digest(text: str, tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over the JSON and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
