"""Files to arrays: which files are images, and what each mode and bit depth means.

Every rule maps a stored value to a brightness by the format alone, never by the image's own content: an image stretched
to its own range would hide exactly the change of brightness that an inspection has to see.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from sfrjax.errors import SfrjaxError

#: Extensions (lower case) of formats that keep every pixel value: the only ones that masks may have.
LOSSLESS_EXTENSIONS = frozenset(
    {".bmp", ".dib", ".gif", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff"}
)
#: Extensions that a folder is searched for: still images that Pillow decodes by itself.
IMAGE_EXTENSIONS = LOSSLESS_EXTENSIONS | {".apng", ".avif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".webp"}


def list_images(paths: Iterable[str | Path] | str | Path) -> list[Path]:
    """The image files among ``paths``, folders searched recursively, in natural order (``im2`` before ``im10``).

    A file named directly is kept whatever its extension, so that what cannot be read is reported rather than lost.
    Inside folders only :data:`IMAGE_EXTENSIONS` count, and names beginning with a dot are passed over; linked folders
    are followed. A file reached twice is listed once.

    Raises:
      SfrjaxError: a path does not exist, or there is no image at all.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    found: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            found.update(dict.fromkeys(_walk(path)))
        elif path.exists() or path.is_symlink():  # a broken link is there; reading it will say what is wrong
            found[path] = None
        else:
            raise SfrjaxError(f"{path} does not exist: give image files or folders of images")
    if not found:
        where = ", ".join(str(path) for path in given) or "an empty list of paths"
        raise SfrjaxError(f"no image found in {where} (looked for {' '.join(sorted(IMAGE_EXTENSIONS))})")
    return sorted(found, key=natural_key)


def natural_key(path: Path) -> tuple:
    """Sort key: runs of digits compare as numbers, letters without case, folder by folder."""
    parts = [[(0, int(t), "") if t.isdecimal() else (1, 0, t) for t in re.split("([0-9]+)", p)] for p in _lower(path)]
    return (parts, str(path))


def _lower(path: Path) -> tuple[str, ...]:
    return tuple(part.lower() for part in path.parts)


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_EXTENSIONS:
                yield Path(here, name)


def read_image(path: str | Path, size: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Read an image as RGB squashed to a square.

    Squashed, not cropped: a crop can cut the whole defect away. The resize is Pillow's bilinear one, antialiased, and
    runs on 8-bit values. Modes: 1-bit, grey, palette, CMYK and others become RGB as Pillow defines; 16-bit grey is
    divided by 257 (65535 becomes 255); transparent pixels are composited on black, so that colours hidden beneath them
    have no effect; EXIF orientation is applied; of several frames or pages the first is used.

    Args:
      path: the file.
      size: side of the square in pixels.

    Returns:
      uint8 [size, size, 3] RGB, and the (height, width) before resizing (after orientation).

    Raises:
      SfrjaxError: the file is missing, truncated or no image, has more pixels than Pillow's limit against decompression
        bombs (``PIL.Image.MAX_IMAGE_PIXELS``, twice), holds floats or 32-bit integers (no brightness is defined for
        them), or 16-bit values that fill at most 12 of the 16 bits (they would lose nearly all their levels).
    """
    values, shape, _ = read_with_picture(path, size, None)
    return values, shape


def read_with_picture(
    path: str | Path, size: int, side: int | None
) -> tuple[NDArray[np.uint8], tuple[int, int], Image.Image | None]:
    """What :func:`read_image` returns and, unless ``side`` is None, the image in RGB, :func:`reduced`; decoded once."""
    image = _as_8_bit(_open(Path(path)), Path(path))
    square = image
    if image.size != (size, size):
        square = image.resize((size, size), Image.Resampling.BILINEAR)
    picture = None if side is None else _rgb(reduced(image, side))
    return np.asarray(_rgb(square)), (image.height, image.width), picture


def image_shape(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image after orientation, from its header alone; errors as for :func:`read_image`."""
    with _reading(Path(path)), Image.open(path) as image:
        sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.width, image.height) if sideways else (image.height, image.width)


def open_rgb(path: str | Path) -> Image.Image:
    """An image as :func:`read_image` sees it, at its own size: 8-bit RGB, upright. Raises the same errors."""
    return _rgb(_as_8_bit(_open(Path(path)), Path(path)))


def reduced(image: Image.Image, side: int) -> Image.Image:
    """An image at most ``side`` pixels wide and high: itself, or a smaller copy."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR)


def read_mask(path: str | Path, *, threshold: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a mask at its own resolution: True where the brightest channel exceeds a threshold.

    Args:
      path: the file.
      threshold: on the scale 0..255 (16-bit masks are compared with ``257 * threshold``); 0 means "anything but black",
        which suits both 0/255 masks and labels 0, 1, 2...
      shape: (height, width) of the image that the mask belongs to.

    Returns:
      bool [height, width].

    Raises:
      SfrjaxError: unreadable as for :func:`read_image`, or of another size than its image.
    """
    return mask_values(path, shape=shape) > threshold


def mask_values(path: str | Path, *, shape: tuple[int, int]) -> NDArray:
    """What :func:`read_mask` compares: the brightest channel on the scale 0..255, uint8 or (16-bit masks) float64."""
    path = Path(path)
    image = _open(path)
    if (image.height, image.width) != tuple(shape):
        raise SfrjaxError(
            f"mask {path} is {image.width} x {image.height} pixels but its image is {shape[1]} x {shape[0]}:"
            " a mask must have its image's size"
        )
    if image.mode in _HIGH_DEPTH:
        return _integers(image, path) / 257
    values = np.asarray(_as_8_bit(image, path))
    return values.max(axis=2) if values.ndim == 3 else values


class Inspection(NamedTuple):
    """What there is to know of an image besides its content."""

    shape: tuple[int, int]  #: (height, width), upright
    stored: str  #: "8-bit grey", "8-bit colour", "16-bit grey", "palette", "transparent", "CMYK", ...
    rotated: bool  #: EXIF orientation turns or mirrors it
    frames: int
    digest: bytes  #: SHA-256 of its size and of the RGB pixels that :func:`read_image` squashes


def inspect_image(path: str | Path) -> Inspection:
    """Decode an image in full, at its own size. Raises the same errors as :func:`read_image`."""
    path = Path(path)
    with _reading(path), Image.open(path) as header:
        deep_colour = header.mode == "RGB" and ";16" in str(header.tile)  # of which Pillow drops half
        frames = getattr(header, "n_frames", 1)
        rotated = header.getexif().get(ExifTags.Base.Orientation, 1) != 1
    image = _open(path)
    if image.mode in _HIGH_DEPTH:
        stored = "16-bit grey"
    elif deep_colour:
        stored = "16-bit colour"
    elif image.has_transparency_data and image.convert("RGBA").getextrema()[-1] != (255, 255):
        stored = "transparent"
    else:
        stored = _NAMES.get(image.mode, image.mode)
    pixels = _as_8_bit(image, path).convert("RGB")
    digest = hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).digest()
    return Inspection((pixels.height, pixels.width), stored, rotated, frames, digest)


_NAMES = {
    "1": "1-bit", "L": "8-bit grey", "LA": "8-bit grey", "RGB": "8-bit colour", "RGBA": "8-bit colour", "P": "palette",
}  # fmt: skip
_HIGH_DEPTH = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def _open(path: Path) -> Image.Image:
    """The decoded first frame, upright."""
    with _reading(path), Image.open(path) as image:
        image.load()
        if image.mode == "P" and image.palette is None:  # which Pillow finds out in some conversions, and not in others
            raise OSError("its palette is missing")
        ImageOps.exif_transpose(image, in_place=True)
        return image


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever Pillow raises inside the block, as one sentence that names the file."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a regular file")  # reading a pipe or a device might never end
        yield
    except FileNotFoundError:
        raise SfrjaxError(f"{path} does not exist") from None
    except Image.DecompressionBombError as error:
        raise SfrjaxError(f"{path} is too large to be read safely ({error}): reduce it or cut it into tiles") from None
    except Exception as error:  # on damaged files decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise SfrjaxError(f"{path} cannot be read as an image ({error}): replace or remove it") from error


def _as_8_bit(image: Image.Image, path: Path) -> Image.Image:
    """Grey or RGB, 8 bits a channel."""
    if image.mode in _HIGH_DEPTH:
        return _from_16_bit(image, path)
    if image.has_transparency_data:
        return _on_black(image)
    if image.mode not in ("L", "RGB"):
        return image.convert("L" if image.mode == "1" else "RGB")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    image = image if image.mode == "RGB" else image.convert("RGB")
    # A comment would go on into every JPEG made of the image, where a long one is an error.
    image.info.pop("comment", None)
    return image


def _integers(image: Image.Image, path: Path) -> NDArray:
    """Values 0..65535 of an image deeper than 8 bits. PNG and PGM are opened as 32-bit "I" yet hold 16 bits."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point" if image.mode == "F" else "32-bit integer"
        raise SfrjaxError(f"{path} holds {kind} values, which have no defined black and white: save it as 8 or 16 bit")
    return np.asarray(image)


def _from_16_bit(image: Image.Image, path: Path) -> Image.Image:
    values = _integers(image, path).astype(np.uint32)
    if 0 < (highest := int(values.max())) < 4096:
        raise SfrjaxError(
            f"{path} is a 16-bit image whose brightest pixel is {highest} of 65535: if the camera gives 10 or 12 bits,"
            " multiply all images by one factor so that its white becomes 65535, or save them as 8 bit"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _on_black(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image).convert("RGB")
