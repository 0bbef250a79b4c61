"""SFR in float64 NumPy, written from Algorithm 1 of the paper: least squares anew at every step, no Gram matrix.
And AUPRO by its definition, threshold by threshold and region by region."""

import itertools

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage import measure


def pursuit(atoms, y, s, eps=1e-6, allowed=None):
    """Signed OMP (Eq. 3-5). atoms [N, D], y [D] -> (support list, residual [D]), all float64."""
    atoms, y = np.asarray(atoms, np.float64), np.asarray(y, np.float64)
    free = list(range(len(atoms))) if allowed is None else [int(i) for i in allowed if i >= 0]
    support, e = [], y.copy()
    while len(support) < s and free and np.linalg.norm(e) > eps:
        best = max(free, key=lambda j: atoms[j] @ e)
        free.remove(best)
        support.append(best)
        coef, *_ = np.linalg.lstsq(atoms[support].T, y, rcond=None)
        e = y - coef @ atoms[support]
    return support, e


def residual_norms(
    levels, reference, features, reference_features, *, s_ref, s, eps=1e-6, pixel=False, sampling="subspace"
):
    """Per level [h, w]: residual norms of one test image. levels: list of [N, h, w, c]; features: list of [h, w, c]."""
    allowed = None
    if sampling == "subspace":
        flat = reference.reshape(len(reference), -1)
        allowed, _ = pursuit(flat, reference_features.reshape(-1), s_ref, eps)
    norms = []
    for atoms, y in zip(levels, features, strict=True):
        n, h, w, c = atoms.shape
        if pixel:
            error = np.stack(
                [pursuit(atoms[:, i, j], y[i, j], s, eps, allowed)[1] for i in range(h) for j in range(w)]
            ).reshape(h, w, c)
        else:
            error = pursuit(atoms.reshape(n, -1), y.reshape(-1), s, eps, allowed)[1].reshape(h, w, c)
        norms.append(np.linalg.norm(error, axis=-1))
    return norms


def upsample(image, size):
    """Bilinear, half-pixel centres, clamped at the border: [h, w] -> [size, size], pixel by pixel."""
    h, w = image.shape
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y = min(max((i + 0.5) * h / size - 0.5, 0), h - 1)
            x = min(max((j + 0.5) * w / size - 0.5, 0), w - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            bottom = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


def anomaly_map(norms, size=256, sigma=4.0):
    """Sum of upsampled levels, then the Gaussian, in this order."""
    return gaussian_filter(sum(upsample(np.asarray(n, np.float64), size) for n in norms), sigma)


def brute_force_aupro(masks, maps, limit):
    """The definition, literally: one point of the curve per distinct score, then trapezoids up to the limit."""
    regions = []
    for i, mask in enumerate(masks):
        labels = measure.label(mask, connectivity=2)
        regions += [(i, labels == k) for k in range(1, labels.max() + 1)]
    n_nominal = sum((~mask).sum() for mask in masks)
    points = [(0.0, 0.0)]
    for t in sorted({float(v) for scores in maps for v in scores.ravel()}, reverse=True):
        flagged = [scores >= t for scores in maps]
        fpr = sum((f & ~m).sum() for f, m in zip(flagged, masks, strict=True)) / n_nominal
        pro = sum((flagged[i] & region).sum() / region.sum() for i, region in regions) / len(regions)
        points.append((fpr, pro))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit
