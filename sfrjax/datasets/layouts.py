"""Which files of a dataset are nominal, which are defective, and which mask belongs to which image.

Images and masks are paired by name, never by position in a sorted list, and anything left unpaired is an error: a
dataset with one mask missing would otherwise be scored against its neighbours' masks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sfrjax.datasets.images import IMAGE_EXTENSIONS, LOSSLESS_EXTENSIONS, list_images, natural_key
from sfrjax.errors import SfrjaxError

DATASETS = ("mvtec", "btad", "mtd", "folder")


class Sample(NamedTuple):
    """One test image."""

    image: Path
    anomalous: bool
    mask: Path | None  #: None: no pixel is defective (``anomalous`` is False), or the set has no masks.
    defect: str  #: name of the defect type; "good" for nominal images


@dataclass(frozen=True)
class Category:
    """One product: what to learn from and what to test on."""

    name: str
    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    mask_threshold: int  #: for :func:`~sfrjax.datasets.images.read_mask`
    has_masks: bool  #: False: only image scores can be evaluated


def load_dataset(name: str, root: str | Path, categories: Sequence[str] | None = None) -> list[Category]:
    """Find a dataset's images and masks; no image is opened.

    Layouts (docs/datasets.md shows them): ``mvtec`` MVTec AD (Bergmann et al., CVPR 2019), ``btad`` BTAD (Mishra et
    al., ISIE 2021), ``mtd`` Magnetic Tile Defect (Huang et al., 2020) in the split of DifferNet (Rudolph et al., WACV
    2021), ``folder`` one's own images.

    Args:
      name: one of :data:`DATASETS`.
      root: the dataset's folder.
      categories: names of the categories wanted, in the order wanted; None: all that are found, in natural order.

    Raises:
      SfrjaxError: no such dataset, folder or category; a folder without images; an image without its mask or a mask
        without its image; two images with the same name. The message names the file or folder and the remedy.
    """
    layouts: dict[str, Callable[[Path], dict[str, Callable[[], Category]]]] = {
        "mvtec": _mvtec, "btad": _btad, "mtd": _mtd, "folder": _folder,
    }  # fmt: skip
    if name not in layouts:
        raise SfrjaxError(f"there is no dataset layout {name!r}: choose from {', '.join(DATASETS)}")
    root = Path(root)
    if not root.is_dir():
        raise SfrjaxError(f"dataset folder {root} does not exist or is not a folder")
    found = layouts[name](root)
    wanted = list(found) if categories is None else list(dict.fromkeys(categories))
    if unknown := [category for category in wanted if category not in found]:
        raise SfrjaxError(f"{root} has no category {', '.join(unknown)}: found {', '.join(found)}")
    if not wanted:
        raise SfrjaxError(f"no category of {root} was asked for: name some of {', '.join(found)}, or none for all")
    return [found[category]() for category in wanted]


def _mvtec(root: Path) -> dict[str, Callable[[], Category]]:
    """ROOT/CATEGORY/{train/good, test/good, test/DEFECT, ground_truth/DEFECT/NAME_mask.png}"""
    return _in_subfolders(root, "mvtec", lambda folder: _train_test(folder, good="good"))


def _btad(root: Path) -> dict[str, Callable[[], Category]]:
    """ROOT/{01,02,03}/{train/ok, test/ok, test/ko, ground_truth/ko/NAME.{png,bmp}}"""
    return _in_subfolders(root, "btad", lambda folder: _train_test(folder, good="ok"))


def _in_subfolders(root: Path, layout: str, load: Callable[[Path], Category]) -> dict[str, Callable[[], Category]]:
    if (root / "train").is_dir():
        raise SfrjaxError(
            f"{root} is itself a category of the {layout} layout: give its parent {root.absolute().parent}"
            f" as the root and {root.absolute().name} as the category"
        )
    found = [folder for folder in _subfolders(root) if (folder / "train").is_dir()]
    if not found:
        raise SfrjaxError(f"{root} holds no category of the {layout} layout (a folder with train/ and test/ inside)")
    return {folder.name: lambda folder=folder: load(folder) for folder in found}  # type: ignore[misc]


def _train_test(folder: Path, *, good: str) -> Category:
    train = _images_in(folder / "train" / good)
    test = _defect_folders(folder / "test", folder / "ground_truth", good=good)
    return Category(folder.name, tuple(train.values()), test, mask_threshold=0, has_masks=True)


def _folder(root: Path) -> dict[str, Callable[[], Category]]:
    """ROOT/{nominal/**, test/good, test/DEFECT, masks/DEFECT/NAME.png or NAME_mask.png}; masks/ may be absent"""

    def load() -> Category:
        nominal, test, masks = root / "nominal", root / "test", root / "masks"
        if not nominal.is_dir():
            hint = " (for the MVTec AD layout choose the dataset mvtec)" if (root / "train").is_dir() else ""
            raise SfrjaxError(f"{root} has no folder nominal/: put the images without defects there{hint}")
        train = tuple(list_images(nominal))
        has_masks = masks.is_dir()
        samples = _defect_folders(test, masks if has_masks else None, good="good")
        return Category(root.resolve().name, train, samples, mask_threshold=0, has_masks=has_masks)

    return {root.resolve().name: load}


def _mtd(root: Path) -> dict[str, Callable[[], Category]]:
    """ROOT/{MT_Free, MT_Blowhole, ...}/Imgs/NAME.{jpg,png} (image, mask) and ROOT/train_filenames.txt"""

    def load() -> Category:
        names_file = root / "train_filenames.txt"
        if not names_file.is_file():
            raise SfrjaxError(
                f"{names_file} is missing: it lists the training images of the published split, one MT_Free file name"
                " per line (DifferNet, Rudolph et al. 2021, publishes it)"
            )
        free = _images_in(root / "MT_Free" / "Imgs", (".jpg",))
        training = {
            Path(line.strip()).stem for line in names_file.read_text(encoding="utf-8").split("\n") if line.strip()
        }
        if absent := sorted(training - free.keys()):
            raise SfrjaxError(
                f"{names_file} names {len(absent)} images that {root / 'MT_Free' / 'Imgs'} lacks: {absent[0]}"
            )
        if not training:
            raise SfrjaxError(f"{names_file} is empty: it must list the training images")
        samples = [Sample(free[stem], False, None, "good") for stem in free if stem not in training]
        for folder in _subfolders(root):
            if folder.name.startswith("MT_") and folder.name != "MT_Free":
                images = _images_in(folder / "Imgs", (".jpg",))
                pairs = _pair(images, _images_in(folder / "Imgs", (".png",)), folder / "Imgs", folder / "Imgs")
                samples += [Sample(image, True, mask, folder.name.removeprefix("MT_").lower()) for image, mask in pairs]
        if not any(sample.anomalous for sample in samples):
            raise SfrjaxError(f"{root} has no folder of defective images (MT_Blowhole, MT_Break, ...)")
        train = tuple(free[stem] for stem in free if stem in training)
        # The masks are grey at the edges. Four of MT_Uneven have no pixel above 127: defective images, no region.
        return Category("mtd", train, tuple(samples), mask_threshold=127, has_masks=True)

    return {"mtd": load}


def _defect_folders(test: Path, masks: Path | None, *, good: str) -> tuple[Sample, ...]:
    """The samples under ``test``: one sub-folder per defect type, ``good`` for images without defects."""
    if not test.is_dir():
        raise SfrjaxError(f"{test} does not exist: it holds the test images, in one sub-folder per defect type")
    if loose := _files(test, IMAGE_EXTENSIONS):
        raise SfrjaxError(
            f"{loose[0]} has no label: move images without defects to {test / good} and the others to"
            f" {test}/NAME_OF_THE_DEFECT (to score unlabelled images use predict)"
        )
    folders = _subfolders(test)
    if not folders:
        raise SfrjaxError(
            f"{test} is empty: put images without defects in {test / good}, others in one folder per defect"
        )
    samples: list[Sample] = []
    for folder in folders:
        images = _images_in(folder)
        if folder.name == good:
            samples += [Sample(image, False, None, "good") for image in images.values()]
        elif masks is None:
            samples += [Sample(image, True, None, folder.name) for image in images.values()]
        else:
            found = _masks_in(masks / folder.name, images)
            pairs = _pair(images, found, folder, masks / folder.name)
            samples += [Sample(image, True, mask, folder.name) for image, mask in pairs]
    if masks is not None:
        names = {folder.name for folder in folders}
        for folder in _subfolders(masks):
            if folder.name not in names and (orphans := _files(folder, IMAGE_EXTENSIONS)):
                raise SfrjaxError(f"{orphans[0]} is a mask without its image: there is no folder {test / folder.name}")
    return tuple(samples)


def _masks_in(folder: Path, images: dict[str, Path]) -> dict[str, Path]:
    """Masks by the stem of the image that they belong to: NAME or NAME_mask."""
    if not folder.is_dir():
        raise SfrjaxError(
            f"{folder} does not exist: it holds the masks of the images in {next(iter(images.values())).parent}"
        )
    if lossy := _files(folder, IMAGE_EXTENSIONS - LOSSLESS_EXTENSIONS):
        raise SfrjaxError(f"mask {lossy[0]} is in a format that may blur its edges: save masks as PNG")
    found: dict[str, Path] = {}
    for mask in _files(folder, LOSSLESS_EXTENSIONS):
        # An image may itself be called ..._mask, so a name that is an image's as it stands goes first.
        stem = mask.stem if mask.stem in images else mask.stem.removesuffix("_mask")
        if stem in found:
            raise SfrjaxError(f"{found[stem]} and {mask} are masks of the same image: remove one")
        found[stem] = mask
    return found


def _pair(images: dict[str, Path], masks: dict[str, Path], image_dir: Path, mask_dir: Path) -> list[tuple[Path, Path]]:
    if missing := [images[stem] for stem in images if stem not in masks]:
        raise SfrjaxError(f"{missing[0]} has no mask in {mask_dir} ({len(missing)} of {len(images)} images have none)")
    if orphans := [masks[stem] for stem in masks if stem not in images]:
        raise SfrjaxError(f"{orphans[0]} is a mask without its image in {image_dir}")
    return [(images[stem], masks[stem]) for stem in images]


def _images_in(folder: Path, extensions: Iterable[str] = IMAGE_EXTENSIONS) -> dict[str, Path]:
    """The images directly in a folder by stem, in natural order."""
    if not folder.is_dir():
        raise SfrjaxError(f"{folder} does not exist: it must hold images")
    found: dict[str, Path] = {}
    for path in _files(folder, extensions):
        if path.stem in found:
            raise SfrjaxError(f"{found[path.stem]} and {path} have the same name: masks are paired by it, rename one")
        found[path.stem] = path
    if not found:
        raise SfrjaxError(f"{folder} holds no image (looked for {' '.join(sorted(extensions))})")
    return found


def _files(folder: Path, extensions: Iterable[str]) -> list[Path]:
    paths = [p for p in folder.iterdir() if p.suffix.lower() in extensions and p.name[0] != "." and p.is_file()]
    return sorted(paths, key=natural_key)


def _subfolders(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."), key=natural_key)
