"""What is wrong or odd with the images themselves: files, modes, sizes, copies."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sfrjax.check.report import Finding, Item
from sfrjax.datasets.images import Inspection
from sfrjax.datasets.layouts import Category, Sample

# Widest image shape over narrowest, from which on squashing to a square shows the same part in visibly different ways.
ASPECT_SPREAD = 1.1

_MODES = {
    "transparent": "transparent pixels become black: if that is not how the part looks, save without transparency",
    "CMYK": "converted to RGB without a colour profile: save as RGB, as cameras do",
    "palette": "a palette keeps at most 256 colours, often dithered: save as RGB, from the original if there is one",
    "16-bit grey": "divided by 257, so that 65535 becomes 255: 256 levels remain",
    "16-bit colour": "the lower 8 bits of each channel are dropped",
}


def unreadable(reasons: dict[Path, str]) -> Iterator[Finding]:
    """Files that cannot be used, with the reader's own words."""
    if reasons:
        items = tuple(Item(path, reason) for path, reason in reasons.items())
        yield Finding("error", "unreadable image", "fit and evaluate stop at the first of them", items)


def modes(images: dict[Path, Inspection]) -> Iterator[Finding]:
    """How images are stored: all that is not plain 8 bit, and mixtures."""
    stored: dict[str, list[Path]] = {}
    for path, image in images.items():
        stored.setdefault(image.stored, []).append(path)
    for mode, paths in stored.items():
        if mode not in ("8-bit grey", "8-bit colour", "1-bit"):
            severity = "note" if mode.startswith("16-bit") else "warning"
            message = _MODES.get(mode, "an unusual mode, converted to RGB as Pillow does: save as RGB")
            yield Finding(severity, f"{mode} image", message, tuple(map(Item, paths)))
    if len(stored) > 1:
        rarest = min(stored.values(), key=len)
        listed = ", ".join(f"{len(paths)} {mode}" for mode, paths in stored.items())
        message = f"{listed}: images stored in different ways rarely come from the same camera settings"
        yield Finding("warning", "mixed modes", message, tuple(map(Item, rarest)))
    if turned := [path for path, image in images.items() if image.rotated]:
        message = "EXIF orientation turns them upright; programs that ignore it see them differently"
        yield Finding("note", "rotated image", message, tuple(map(Item, turned)))
    if several := [Item(path, f"{image.frames} frames") for path, image in images.items() if image.frames > 1]:
        yield Finding("note", "several frames", "only the first frame or page is used", tuple(several))


def sizes(category: Category, images: dict[Path, Inspection], side: int) -> Iterator[Finding]:
    """Sizes and shapes that differ, and images smaller than the side x side pixels that the network sees."""
    if not images:
        return
    counted = Counter(image.shape for image in images.values())
    if len(counted) > 1:
        usual, count = counted.most_common(1)[0]
        listed = f"{len(counted)} sizes, most often {spelled(usual)} ({count} of {len(images)})"
        ratios = sorted((image.shape[1] / image.shape[0], path) for path, image in images.items())
        (narrow, narrowest), (wide, widest) = ratios[0], ratios[-1]
        if wide > ASPECT_SPREAD * narrow:
            message = (
                f"{listed}, width / height from {narrow:.2f} ({narrowest}) to {wide:.2f} ({widest}): each is squashed "
                "to a square, so the same part looks different in them; cut them to one aspect ratio if you can"
            )
            yield Finding("warning", "mixed aspect ratios", message)
        else:
            yield Finding("note", "mixed sizes", f"{listed}, of nearly one aspect ratio: squashing does no harm")
    trained = {images[path].shape for path in category.train if path in images}
    tested = [sample.image for sample in category.test if sample.image in images]
    if trained and tested and not trained & {images[path].shape for path in tested}:
        message = "no test image has the size of a nominal one: were they taken alike?"
        items = tuple(Item(path, spelled(images[path].shape)) for path in tested)
        yield Finding("warning", "test images of another size", message, items)
    if small := [Item(path, spelled(image.shape)) for path, image in images.items() if max(image.shape) < side]:
        message = f"smaller than the {side} x {side} pixels that the network sees: enlarged, which adds no detail"
        yield Finding("note", "small image", message, tuple(small))


def spelled(shape: tuple[int, int]) -> str:
    """WIDTH x HEIGHT of (height, width)."""
    return f"{shape[1]} x {shape[0]}"


def duplicates(category: Category, images: dict[Path, Inspection]) -> Iterator[Finding]:
    """Images of the same pixels, whatever their files' names and formats."""
    train: dict[bytes, list[Path]] = {}
    test: dict[bytes, list[Sample]] = {}
    for path in category.train:
        if path in images:
            train.setdefault(images[path].digest, []).append(path)
    for sample in category.test:
        if sample.image in images:
            test.setdefault(images[sample.image].digest, []).append(sample)
    shared = [Item(s.image, f"is {train[key][0]}") for key in test if key in train for s in test[key]]
    if shared:
        message = (
            "the same pixels are among the nominal images, which makes the metrics worthless: remove one of the two"
        )
        yield Finding("warning", "test image among the nominal ones", message, tuple(shared))
    if copies := [Item(path, f"is {paths[0]}") for paths in train.values() for path in paths[1:]]:
        message = (
            "a copy adds nothing to the bank, and its leave-one-out score is 0, which says nothing of new images: "
            "remove it"
        )
        yield Finding("warning", "nominal image twice", message, tuple(copies))
    for severity, kind, message, differ in (
        ("warning", "contradictory labels", "the same pixels are in the test set under different labels", True),
        ("note", "test image twice", "counted as often as it is there", False),
    ):
        items = tuple(
            Item(sample.image, f"is {group[0].image}")
            for group in test.values()
            if (len({sample.defect for sample in group}) > 1) is differ
            for sample in group[1:]
        )
        if items:
            yield Finding(severity, kind, message, items)
