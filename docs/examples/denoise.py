"""Denoise a photograph by sparse coding of its patches: `python docs/examples/denoise.py`, a few seconds.

Every 8 x 8 patch, its mean removed, is approximated by as few atoms of an overcomplete cosine dictionary as bring the
residual down to noise level (Elad and Aharon 2006, with their fixed dictionary); overlapping patches are averaged.
Writes denoise.png beside this file. The photograph is the one that scikit-learn comes with.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from sfrjax.pursuit import omp, reconstruct

SIDE, SIGMA = 8, 0.1


def cosine_dictionary(side: int, frequencies: int) -> np.ndarray:
    """Products of sampled cosines `[frequencies ** 2 - 1, side ** 2]`: unit norm, zero mean, no constant atom."""
    waves = np.cos(np.outer(np.arange(frequencies), np.arange(side) + 0.5) * np.pi / frequencies)
    waves[1:] -= waves[1:].mean(1, keepdims=True)
    atoms = np.einsum("ax,by->abxy", waves, waves).reshape(frequencies**2, side**2)[1:]
    return (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)


def denoise(image: np.ndarray, sigma: float) -> np.ndarray:
    """A grey image `[H, W]` in 0..1 with Gaussian noise of standard deviation `sigma`, cleaned."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (SIDE, SIDE))
    patches = windows.reshape(-1, SIDE**2).astype(np.float32)
    mean = patches.mean(1, keepdims=True)
    dictionary = cosine_dictionary(SIDE, 16)
    code = omp(dictionary, patches - mean, n_nonzero_coefs=16, tol=1.15 * sigma * SIDE)
    clean = np.asarray(reconstruct(dictionary, code)) + mean

    total, count = np.zeros_like(image), np.zeros_like(image)
    clean = clean.reshape(*windows.shape)
    height, width = windows.shape[:2]
    for x, y in np.ndindex(SIDE, SIDE):
        total[x : x + height, y : y + width] += clean[:, :, x, y]
        count[x : x + height, y : y + width] += 1
    print(f"{len(patches)} patches, {float(code.n_atoms.mean()):.1f} atoms each on average")
    return total / count


def main() -> None:
    """Add noise, remove it, and show all three."""
    image = load_sample_image("china.jpg")[40:296, 190:446].mean(-1) / 255
    noisy = image + SIGMA * np.random.default_rng(0).standard_normal(image.shape)
    cleaned = denoise(noisy, SIGMA)
    shown = (("original", image), ("noise added", noisy), ("denoised with sfrjax.omp", cleaned))
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
    for axis, (title, picture) in zip(axes, shown, strict=True):
        error = np.mean((picture - image) ** 2)
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title if error == 0 else f"{title}: {-10 * np.log10(error):.1f} dB", fontsize=9)
        axis.set_axis_off()
    file = Path(__file__).with_suffix(".png")
    figure.savefig(file, dpi=80)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
