"""What fit will need: the bank's size by shapes alone, the time by a short measurement."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sfrjax.backbones import untrained_backbone
from sfrjax.background import THREADS
from sfrjax.bank import CALIBRATION_IMAGES, TensorSpec, atoms_dtype, bank_bytes, bank_specs, spec_bytes
from sfrjax.features import extract
from sfrjax.gram import COLUMNS
from sfrjax.settings import BATCH_SIZE, Settings

# Assumed, not measured: seconds to start, to load the weights and to compile what is not the network; bytes per second
# at which the pursuits that set the threshold read features, and at which the bank is written.
START = 6
BANK_RATE = 10e9
WRITE_RATE = 0.4e9


@dataclass(frozen=True)
class Cost:
    """What fit will need.

    Attributes:
        bank_bytes: size of the bank, in memory and on disk.
        seconds: estimate of the whole of fit on this machine.
        basis: what the estimate rests on.
    """

    bank_bytes: int
    seconds: float
    basis: str


def fit_cost(settings: Settings, n_images: int, decoding: float) -> Cost:
    """Estimate the cost of a fit from two batches of random images through an untrained network.

    Args:
        settings: of the fit.
        n_images: number of nominal images.
        decoding: seconds of one core to read an image.
    """
    backbone = untrained_backbone(settings.backbone, levels=settings.feature_levels, dtype=settings.dtype)
    specs = bank_specs(backbone, settings, n_images)
    size = bank_bytes(backbone, settings, n_images)
    batch = min(BATCH_SIZE, n_images)
    shape = (batch, settings.image_size, settings.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def run() -> list[jax.Array]:
        return list(extract(backbone, images, neighbourhood=settings.neighbourhood).values())

    compilation = _seconds(run)
    network = min(_seconds(run), _seconds(run)) / batch
    block = jnp.zeros((min(n_images, 512), COLUMNS), jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST))
    _seconds(lambda: product(block))
    # A Gram matrix is n^2 / 2 multiplications for each column of its atoms.
    squared = [spec_bytes(specs[name.replace(".gram", ".atoms")]) for name in specs if name.endswith(".gram")]
    columns = sum(squared) / atoms_dtype(settings).itemsize / n_images
    gram = _seconds(lambda: product(block)) / (block.shape[0] ** 2 * COLUMNS) * n_images**2 * columns / 2
    calibration = _bytes_read(settings, specs, n_images, batch) / BANK_RATE
    decode = decoding / min(THREADS, os.cpu_count() or 1)
    seconds = START + compilation + n_images * max(network, decode) + gram + calibration + size / WRITE_RATE
    basis = (
        f"measured here: network {1000 * network:.0f} ms an image, decoding {1000 * decode:.0f} ms, compilation "
        f"{compilation:.0f} s, Gram matrices {gram:.0f} s; assumed: {START} s to start, "
        f"{BANK_RATE / 1e9:.0f} GB/s to set the threshold, {WRITE_RATE / 1e9:.1f} GB/s to write"
    )
    return Cost(size, seconds, basis)


def _bytes_read(settings: Settings, specs: dict[str, TensorSpec], n_images: int, batch: int) -> float:
    """What leave-one-out scoring reads: whole levels for each batch, parts of them for each image."""
    reference = sum(spec_bytes(spec) for name, spec in specs.items() if name == "reference.atoms")
    scored = sum(spec_bytes(spec) for name, spec in specs.items() if name.endswith(".atoms")) - reference
    images = min(n_images, CALIBRATION_IMAGES)
    by_batch = reference + (scored if settings.sampling == "none" or settings.mode == "pixel" else 0)
    by_image = (settings.s + (settings.s_ref if settings.sampling != "none" else 0)) * scored / n_images
    return images * (by_batch / batch + by_image)


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start
