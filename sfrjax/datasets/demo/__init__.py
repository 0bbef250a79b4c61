"""A small inspection set drawn by arithmetic: three products, five kinds of defect each, exact masks, MVTec AD layout.

Nothing is downloaded, and the same seed gives the same pixels. Good parts differ in position, rotation, light and
texture; many defects are small or faint, so that a good method does well and not perfectly.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from sfrjax.datasets.demo import blister, board, flange
from sfrjax.datasets.demo.drawing import SIZE, Array, X, Y
from sfrjax.errors import SfrjaxError

Render = Callable[[np.random.Generator, np.random.Generator, str | None], Array]

#: Product -> its renderer and the names of its defects.
PRODUCTS: dict[str, tuple[Render, tuple[str, ...]]] = {
    "blister": (blister.render, blister.DEFECTS),
    "board": (board.render, board.DEFECTS),
    "flange": (flange.render, flange.DEFECTS),
}
N_TRAIN, N_GOOD, N_PER_DEFECT = 50, 10, 4  #: images per product: nominal, good test, test per defect

_VISIBLE = 0.015  # of full light: as far as it changes the picture by more than this, a defect is masked
_SMALLEST = 25  # pixels: a defect that covers fewer is drawn anew


def write_demo_set(root: str | Path, *, seed: int = 0) -> Path:
    """Write the demonstration set under ``root`` in the MVTec AD layout.

    Args:
      root: the folder, made if needed; a demonstration set that is there already is written over.
      seed: another seed gives other images of the same products. The pixels depend on nothing else.

    Returns:
      ``root`` as a Path, for ``load_dataset("mvtec", root)``.

    Raises:
      SfrjaxError: ``root`` holds other files among the set's own, which would be taken for part of it, or cannot be
        written to.
    """
    root = Path(root)
    if stray := _stray(root):
        raise SfrjaxError(f"{stray[0]} is not part of the demonstration set: choose an empty folder")

    def write(key: tuple[str, str, int]) -> None:
        drawing = draw(*key, seed=seed)
        image, mask = _paths(*key)
        _save(drawing.picture, root / image)
        if mask is not None:
            _save(drawing.mask, root / mask)

    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # drawing and compressing release the interpreter's lock
            deque(pool.map(write, _pictures()), maxlen=0)
    except OSError as error:
        raise SfrjaxError(f"cannot write the demonstration set to {root} ({error.strerror or error})") from error
    return root


def _save(pixels: NDArray[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)  # noise hardly compresses: 12 % larger, three times as fast


def _pictures() -> Iterator[tuple[str, str, int]]:
    """(product, kind, index) of every picture."""
    for product, (_, defects) in PRODUCTS.items():
        for kind, n in (("train", N_TRAIN), ("good", N_GOOD), *((defect, N_PER_DEFECT) for defect in defects)):
            for index in range(n):
                yield product, kind, index


def _paths(product: str, kind: str, index: int) -> tuple[Path, Path | None]:
    """Image and mask below the root."""
    if kind in ("train", "good"):
        return Path(product, "train" if kind == "train" else "test", "good", f"{index:03}.png"), None
    mask = Path(product, "ground_truth", kind, f"{index:03}_mask.png")
    return Path(product, "test", kind, f"{index:03}.png"), mask


def _stray(root: Path) -> list[Path]:
    """Files in the products' folders that the set does not write."""
    ours = {root / path for key in _pictures() for path in _paths(*key) if path is not None}
    found = (path for product in PRODUCTS for path in sorted((root / product).rglob("*")) if path.is_file())
    return [path for path in found if path not in ours]


class Drawing(NamedTuple):
    """One picture of the set."""

    picture: NDArray[np.uint8]  #: [SIZE, SIZE, 3] RGB
    mask: NDArray[np.bool_]  #: [SIZE, SIZE], True on the defect
    without: NDArray[np.uint8]  #: the same part, light and noise without the defect


def draw(product: str, kind: str, index: int, *, seed: int = 0) -> Drawing:
    """Draw one picture; ``kind`` is "train", "good" or one of the product's defects.

    The part is rendered twice from the same random numbers, with the defect and without. The mask is where the two
    differ visibly, holes filled, and outside the mask the picture is the one without: so the mask is exact. Light and
    noise come last and are the same for both.
    """
    render, defects = PRODUCTS[product]
    key = [seed, list(PRODUCTS).index(product), ("train", "good", *defects).index(kind), index]

    def part(defect: str | None, attempt: int) -> Array:
        nominal, fault = np.random.default_rng([*key, 0]), np.random.default_rng([*key, 2 + attempt])
        return ndimage.gaussian_filter(render(nominal, fault, defect), (0.6, 0.6, 0), truncate=3)  # the lens

    def photograph(picture: Array) -> NDArray[np.uint8]:
        return _photograph(picture, np.random.default_rng([*key, 1]))

    good = part(None, 0)
    mask, without = np.zeros((SIZE, SIZE), bool), photograph(good)
    if kind not in defects:
        return Drawing(without, mask, without)
    for attempt in count():
        faulty = part(kind, attempt)
        visible = np.abs(faulty - good).max(axis=2) > _VISIBLE
        mask = ndimage.binary_fill_holes(visible | ndimage.binary_closing(visible, iterations=2))
        if np.count_nonzero(mask) >= _SMALLEST:
            break
    return Drawing(photograph(np.where(mask[..., None], faulty, good)), mask, without)


def _photograph(picture: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Uneven light, exposure, white balance and sensor noise."""
    direction, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.10)
    slope = (np.float32(np.cos(direction)) * X + np.float32(np.sin(direction)) * Y) / np.float32(SIZE / 2)
    light = (1 + np.float32(strength) * slope) * np.float32(rng.normal(1, 0.03))
    exposed = np.clip(picture * light[..., None] * rng.normal(1, 0.008, 3).astype(np.float32), 0, 1)
    displayed = 255 * np.sqrt(exposed)  # gamma 2
    noise = rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32) * np.float32(2.0)
    return np.clip(np.rint(displayed + noise), 0, 255).astype(np.uint8)
