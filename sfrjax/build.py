"""Building a memory bank: nominal images' features written into it batch by batch, Gram matrices, nominal scores."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sfrjax.backbones import Backbone
from sfrjax.bank import (
    CALIBRATION_IMAGES,
    Bank,
    LevelShape,
    Tensors,
    TensorSpec,
    assembled,
    bank_layout,
    bank_shapes,
    bank_specs,
    new_about,
    on_disk,
)
from sfrjax.errors import SfrjaxError
from sfrjax.features import Batch, extract
from sfrjax.gram import fill_gram
from sfrjax.memory import aligned_empty
from sfrjax.progress import tracked
from sfrjax.reconstruction import Dictionary, residual_norms
from sfrjax.scoring import anomaly_maps
from sfrjax.settings import Level, Settings

COPY_ROWS = 64  # images copied at a time from a bank that grows


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
    bank.nominal_scores[:] = _leave_one_out(bank, bank_shapes(backbone, settings), batch_size, progress=progress)
    return bank


def _file_sha256(path: Path) -> bytes:
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
            digest = _file_sha256(path)
            if digest in known:
                raise SfrjaxError(f"{path}: the bank holds this image already; leave it out")
            tensors["image_sha256"][start + i] = np.frombuffer(digest, np.uint8)
        for key, (level, pixelwise) in bank_layout(settings).items():
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
