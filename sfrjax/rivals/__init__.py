"""The methods that SFR is compared with, each a `fit` over nominal features and a `score` of test features."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sfrjax.backbones import Backbone, level_shapes
from sfrjax.errors import SfrjaxError
from sfrjax.features import Batch, extract
from sfrjax.rivals import padim, patchcore, spade
from sfrjax.settings import Level, Settings

_MODULES: dict[str, Any] = {"padim": padim, "patchcore": patchcore, "spade": spade}


@dataclass(frozen=True)
class Rival:
    """A fitted rival: everything `predict` needs besides the network.

    Attributes:
        settings: what it was fitted with; settings.method says which it is.
        weights_name, weights_sha256: the network's weights.
        model: its arrays, a NamedTuple (see the method's own module).
    """

    settings: Settings
    weights_name: str
    weights_sha256: str
    model: Any

    @property
    def threshold(self) -> None:
        """None: nothing in these methods says from which score on an image is anomalous."""
        return None

    @property
    def n_bytes(self) -> int:
        """Size in bytes of what was fitted."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.model))

    def check(self, backbone: Backbone, settings: Settings) -> None:
        """Raise SfrjaxError where the network or the settings are not those it was fitted with."""
        if backbone.weights_sha256 != self.weights_sha256:
            raise SfrjaxError(
                f"{self.settings.method} was fitted with the weights {self.weights_name}, not with "
                f"{backbone.weights_name}; fit again"
            )
        if settings != self.settings:
            raise SfrjaxError(f"{self.settings.method} was fitted with other settings; fit again to change them")


def fit_bytes(backbone: Backbone, settings: Settings, n_images: int) -> int:
    """Memory in bytes that `fit_rival` takes besides the network's, before it begins."""
    shapes = level_shapes(backbone, (settings.image_size, settings.image_size))
    return int(_MODULES[settings.method].fit_bytes(n_images, shapes, settings))


def fit_rival(backbone: Backbone, settings: Settings, batches: Iterable[Batch], n_images: int) -> Rival:
    """Fit settings.method on the features of nominal images, streamed batch by batch.

    Args:
        backbone: network loaded for settings.feature_levels.
        settings: the method's settings.
        batches: nominal images, n_images in all.
        n_images: number of nominal images.

    Raises:
        SfrjaxError: the features are not finite.
    """
    shapes = level_shapes(backbone, (settings.image_size, settings.image_size))
    # What goes wrong in the last programs, and their time, belongs to the fit and not to the first image scored.
    model = jax.block_until_ready(
        _MODULES[settings.method].fit(_features(backbone, batches), n_images, shapes, settings)
    )
    return Rival(settings, backbone.weights_name, backbone.weights_sha256, model)


def score_rival(rival: Rival, features: Mapping[Level, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Anomaly maps float32 [B, size, size] and image scores float32 [B] of test features {level: [B, h, w, c]}."""
    maps, scores = _MODULES[rival.settings.method].score(rival.model, features, rival.settings)
    return maps, scores


def _features(backbone: Backbone, batches: Iterable[Batch]) -> Iterator[dict[Level, jax.Array]]:
    for batch in batches:
        features = {level: maps[: len(batch.paths)] for level, maps in extract(backbone, batch.images).items()}
        if not all(np.isfinite(maps.sum()) for maps in features.values()):
            raise SfrjaxError(f"{backbone.weights_name}: the features of the nominal images are not finite")
        yield features
