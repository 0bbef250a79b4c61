"""How well nominal features that are not in the memory bank are represented: pursuit against nearest neighbour.

`measure` is Fig. 6 of the paper on real features, `toy` its Fig. 3 in two dimensions; `paper.py` runs both.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import TEXTURES, device_name, weights_of, write_result

from sfrjax.backbones import load_backbone
from sfrjax.bank import Bank
from sfrjax.datasets import Category
from sfrjax.features import extract, image_batches
from sfrjax.metrics import auroc
from sfrjax.pipeline import fit
from sfrjax.pursuit import omp
from sfrjax.reconstruction import Dictionary, residual_norms
from sfrjax.sampling import subspace_support
from sfrjax.settings import BATCH_SIZE, PRESETS, Settings

S_REFS = (5, 10, 20, 30, 40, 50)
HELD_OUT = 32


def measure(dataset: str, category: Category, backbone: str, mode: str, result: dict, path: Path) -> None:
    """Add a category's rows to result["representation"]: relative errors of held-out nominal images over s_ref.

    HELD_OUT nominal images, evenly spread, are left out of the bank. Both methods get the same s_ref candidates, chosen
    for each image by subspace-based sampling: the pursuit combines up to s_ref / 2 of them, matching takes the nearest.
    """
    held = np.unique(np.linspace(0, len(category.train) - 1, min(HELD_OUT, len(category.train) // 4)).astype(int))
    kept = [image for i, image in enumerate(category.train) if i not in held]
    identity = {"dataset": dataset, "category": category.name, "backbone": backbone, "mode": mode}
    done = {row["s_ref"] for row in result["representation"] if identity.items() <= row.items()}
    sizes = [s_ref for s_ref in S_REFS if s_ref <= len(kept) and s_ref not in done]
    if not sizes:
        return
    preset = {**PRESETS[dataset], "levels": (2, 3), "backbone": backbone, "mode": mode}
    settings = [Settings(**{**preset, "s_ref": s_ref, "s": max(1, s_ref // 2)}) for s_ref in sizes]
    network = load_backbone(backbone, levels=settings[0].feature_levels, weights=weights_of(backbone))
    bank = fit(kept, settings[0], backbone=network, progress=True)
    errors: dict[int, list[np.ndarray]] = {s_ref: [] for s_ref in sizes}
    images = [category.train[i] for i in held]
    for batch in image_batches(images, size=settings[0].image_size, batch_size=BATCH_SIZE):
        features = extract(network, batch.images)
        for variant in settings:
            errors[variant.s_ref].append(_relative_errors(bank, variant, features)[:, : len(batch.paths)])
    for variant in settings:
        pursuit, match = np.concatenate(errors[variant.s_ref], axis=1).mean(axis=1)
        row = {"kind": "texture" if category.name in TEXTURES else "object", "held_out": len(images)}
        row |= {"s_ref": variant.s_ref, "s": variant.s, "nominal_images": len(kept), "device": device_name()}
        result["representation"].append({**identity, **row, "pursuit": float(pursuit), "match": float(match)})
    write_result(path, result)


def _relative_errors(bank: Bank, settings: Settings, features: dict) -> np.ndarray:
    """float [2, B]: ||y - its representation|| / ||y|| by pursuit and by matching, averaged over the scoring levels."""
    assert bank.reference is not None
    scored = tuple(features[level] for level in settings.levels)
    reference = features[settings.reference]
    support = subspace_support(
        bank.reference.atoms,
        bank.reference.gram,
        reference.reshape(len(reference), -1),
        s_ref=settings.s_ref,
        eps=settings.eps,
    )
    norms = residual_norms(bank.scoring, bank.reference, scored, reference, settings=settings)
    rows = []
    for dictionary, y, norm in zip(bank.scoring, scored, norms, strict=True):
        match = _nearest(dictionary, y.reshape(*_signal_shape(y, settings.mode)), support)
        scale = jnp.linalg.norm(y.reshape(len(y), -1), axis=1)
        rows.append(jnp.stack([jnp.linalg.norm(norm.reshape(len(y), -1), axis=1), match]) / scale)
    return np.asarray(sum(rows) / len(rows))


def _signal_shape(features: jax.Array, mode: str) -> tuple[int, ...]:
    batch, height, width, channels = features.shape
    return (batch, height * width, channels) if mode == "pixel" else (batch, 1, height * width * channels)


@jax.jit
def _nearest(dictionary: Dictionary, y: jax.Array, support: jax.Array) -> jax.Array:
    """float [B]: distance of signals [B, P, D] to the nearest of their candidates, each position by itself."""
    atoms = dictionary.atoms if dictionary.atoms.ndim == 3 else dictionary.atoms[None]

    def distances(candidate: jax.Array) -> jax.Array:  # int [B] -> [B, P]
        gathered = jnp.moveaxis(atoms[:, jnp.maximum(candidate, 0)], 1, 0)
        distance = jnp.sum((y - gathered) ** 2, -1)
        return jnp.where(candidate[:, None] < 0, jnp.inf, distance)

    nearest = jax.lax.map(distances, support.T).min(0)
    return jnp.sqrt(nearest.sum(-1))


def toy() -> dict:
    """Nominal points on two lines through the origin, defects beside them: errors of both representations on a grid.

    The new nominal points lie on the same lines, farther out than any of the bank: out of the bank, in its subspace.
    """
    rng = np.random.default_rng(0)
    directions = np.array([[np.cos(a), np.sin(a)] for a in np.deg2rad([25.0, 70.0])])

    def points(count: int, low: float, high: float) -> np.ndarray:
        line = rng.integers(0, 2, count)
        return rng.uniform(low, high, (count, 1)) * directions[line] + rng.normal(0, 0.015, (count, 2))

    bank = points(12, 0.2, 0.8)
    nominal = points(40, 0.1, 1.5)
    defects = rng.uniform(0.1, 1.3, (200, 2))
    apart = np.abs(defects @ np.array([directions[:, 1], -directions[:, 0]])).min(axis=1)
    defects = defects[apart > 0.12][:40]
    axis = np.linspace(0, 1.5, 121)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    errors = {name: partial(of, bank) for name, of in (("match", _match), ("pursuit", _pursue))}
    labels = np.r_[np.zeros(len(nominal), bool), np.ones(len(defects), bool)]
    return {
        "bank": bank.tolist(),
        "nominal": nominal.tolist(),
        "defects": defects.tolist(),
        "extent": 1.5,
        **{f"{name}_grid": np.round(error(grid), 4).reshape(121, 121).tolist() for name, error in errors.items()},
        **{f"{name}_auroc": auroc(labels, error(np.r_[nominal, defects])) for name, error in errors.items()},
    }


def _match(bank: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - bank[None], axis=-1).min(1)


def _pursue(bank: np.ndarray, points: np.ndarray) -> np.ndarray:
    """One atom: in two dimensions two would rebuild everything."""
    code = omp(jnp.asarray(bank, jnp.float32), jnp.asarray(points, jnp.float32), n_nonzero_coefs=1, unit_norm=True)
    return np.asarray(code.residual_norm)
