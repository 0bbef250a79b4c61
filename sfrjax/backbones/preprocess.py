"""What a set of weights expects of its input: a property of the weights, never of the caller."""

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sfrjax.errors import SfrjaxError


@dataclass(frozen=True)
class Preprocess:
    """Turns uint8 RGB pixels into network input: ``(pixel * scale - mean) / std`` in the given channel order.

    Attributes:
        channels: "rgb" or "bgr", the order in which the network reads colours; mean and std are in that order.
        scale: factor applied to 0..255 pixel values first (1/255 for torchvision, 1 for Caffe and EfficientNet-Lite).
        mean: three numbers, subtracted after scaling.
        std: three positive numbers, divided by last.
    """

    channels: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W, 3] RGB in 0..255 -> float32 [B, H, W, 3]."""
        pixels = images.astype(jnp.float32)
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        gain = [self.scale / s for s in self.std]
        offset = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        return pixels * jnp.asarray(gain, jnp.float32) + jnp.asarray(offset, jnp.float32)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form that `from_dict` reads back to an equal object."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Preprocess":
        """The inverse of `to_dict`.

        Raises:
            SfrjaxError: the fields are not those of a Preprocess.
        """
        try:
            channels, scale = str(fields["channels"]), float(fields["scale"])
            mean, std = ([float(v) for v in fields[key]] for key in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as e:
            raise SfrjaxError(f"preprocessing description {fields!r} is not one that sfrjax wrote: {e!r}") from e
        if channels not in ("rgb", "bgr") or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise SfrjaxError(
                f"preprocessing description {fields!r} needs channels rgb|bgr, 3 means and 3 positive stds"
            )
        return cls(channels, scale, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


# torchvision's and timm's ImageNet statistics.
IMAGENET = Preprocess("rgb", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# EfficientNet-Lite: (x - 127) / 128, so that the quantised network's input is centred on a whole number.
EFFICIENTNET_LITE = Preprocess("rgb", 1.0, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
