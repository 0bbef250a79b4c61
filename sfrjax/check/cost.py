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
from sfrjax.bank import CALIBRATION_IMAGES, bank_bytes
from sfrjax.features import extract
from sfrjax.gram import COLUMNS
from sfrjax.settings import BATCH_SIZE, Settings

# Bytes per second at which the pursuits that set the threshold pass through the bank; assumed, not measured.
BANK_RATE = 10e9


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
    size = bank_bytes(backbone, settings, n_images)
    itemsize = 4 if settings.atoms_dtype == "float32" else 2
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
    # A Gram matrix is n^2 / 2 multiplications for each of the bank's columns, of which there are about
    # size / (n itemsize).
    gram = _seconds(lambda: product(block)) / (block.shape[0] ** 2 * COLUMNS) * n_images * size / itemsize / 2
    calibration = min(n_images, CALIBRATION_IMAGES) / batch * 2 * size / BANK_RATE
    decode = decoding / min(THREADS, os.cpu_count() or 1)
    seconds = compilation + n_images * max(network, decode) + gram + calibration
    basis = (
        f"measured here: network {1000 * network:.0f} ms an image, decoding {1000 * decode:.0f} ms, compilation "
        f"{compilation:.0f} s, Gram matrices {gram:.0f} s; assumed: {BANK_RATE / 1e9:.0f} GB/s for the threshold"
    )
    return Cost(size, seconds, basis)


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start
