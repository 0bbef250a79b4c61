"""Which files of a dataset are nominal, which are defective, and which mask belongs to which image.

Images and masks are paired by name, never by position in a sorted list, and anything left unpaired is a problem: a
dataset with one mask missing would otherwise be scored against its neighbours' masks. Layouts gather problems as they
go along; `load_dataset` raises the first, `survey_dataset` hands out all.
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


class Problem(NamedTuple):
    """One thing that keeps a category from being evaluated as it is."""

    kind: str  #: "missing mask", "mask without image", "same name", "lossy mask", "no label" or "layout"
    path: Path  #: the file or folder
    message: str  #: a sentence that names it and the remedy


@dataclass(frozen=True)
class Category:
    """One product: what to learn from and what to test on."""

    name: str
    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    mask_threshold: int  #: for :func:`~sfrjax.datasets.images.read_mask`
    has_masks: bool  #: False: only image scores can be evaluated
    problems: tuple[Problem, ...] = ()  #: always empty from :func:`load_dataset`


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
    found = survey_dataset(name, root, categories)
    if problems := [problem for category in found for problem in category.problems]:
        more = f" (and {len(problems) - 1} more: `sfrjax check` lists all problems)" if len(problems) > 1 else ""
        raise SfrjaxError(problems[0].message + more)
    return found


def survey_dataset(name: str, root: str | Path, categories: Sequence[str] | None = None) -> list[Category]:
    """As :func:`load_dataset`, for looking rather than using: what is wrong inside a category is in its ``problems``.

    A defective image whose mask is missing is there, without one; a category may be without images altogether.

    Raises:
      SfrjaxError: no such dataset, folder or category.
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
    problems: list[Problem] = []
    train = _images_in(folder / "train" / good, problems)
    test = _defect_folders(folder / "test", folder / "ground_truth", problems, good=good)
    return Category(folder.name, tuple(train.values()), test, 0, has_masks=True, problems=tuple(problems))


def _folder(root: Path) -> dict[str, Callable[[], Category]]:
    """ROOT/{nominal/**, test/good, test/DEFECT, masks/DEFECT/NAME.png or NAME_mask.png}; masks/ may be absent"""
    name = root.resolve().name

    def load() -> Category:
        problems: list[Problem] = []
        nominal, masks = root / "nominal", root / "masks"
        train: list[Path] = []
        if nominal.is_dir():
            try:
                train = list_images(nominal)
            except SfrjaxError as error:
                problems.append(Problem("layout", nominal, str(error)))
        else:
            hint = " (for the MVTec AD layout choose the dataset mvtec)" if (root / "train").is_dir() else ""
            message = f"{root} has no folder nominal/: put the images without defects there{hint}"
            problems.append(Problem("layout", nominal, message))
        has_masks = masks.is_dir()
        test = _defect_folders(root / "test", masks if has_masks else None, problems, good="good")
        return Category(name, tuple(train), test, 0, has_masks=has_masks, problems=tuple(problems))

    return {name: load}


def _mtd(root: Path) -> dict[str, Callable[[], Category]]:
    """ROOT/{MT_Free, MT_Blowhole, ...}/Imgs/NAME.{jpg,png} (image, mask) and ROOT/train_filenames.txt"""

    def load() -> Category:
        problems: list[Problem] = []
        training = _mtd_training_names(root / "train_filenames.txt", problems)
        free = _images_in(root / "MT_Free" / "Imgs", problems, (".jpg",))
        if absent := sorted(training - free.keys()):
            message = (
                f"{root / 'train_filenames.txt'} names {len(absent)} images that {root / 'MT_Free' / 'Imgs'} lacks:"
                f" {absent[0]}"
            )
            problems.append(Problem("layout", root / "train_filenames.txt", message))
        samples = [Sample(free[stem], False, None, "good") for stem in free if stem not in training]
        for folder in _subfolders(root):
            if folder.name.startswith("MT_") and folder.name != "MT_Free":
                inside, defect = folder / "Imgs", folder.name.removeprefix("MT_").lower()
                images = _images_in(inside, problems, (".jpg",))
                masks = _images_in(inside, problems, (".png",)) if images else {}
                samples += _pair(images, masks, inside, inside, defect, problems)
        if not any(sample.anomalous for sample in samples):
            message = f"{root} has no folder of defective images (MT_Blowhole, MT_Break, ...)"
            problems.append(Problem("layout", root, message))
        train = tuple(free[stem] for stem in free if stem in training)
        # The masks are grey at the edges. Four of MT_Uneven have no pixel above 127: defective images, no region.
        return Category("mtd", train, tuple(samples), 127, has_masks=True, problems=tuple(problems))

    return {"mtd": load}


def _mtd_training_names(file: Path, problems: list[Problem]) -> set[str]:
    """Stems of the published split's training images."""
    names: set[str] = set()
    if not file.is_file():
        message = (
            f"{file} is missing: it lists the training images of the published split, one MT_Free file name"
            " per line (DifferNet, Rudolph et al. 2021, publishes it)"
        )
        problems.append(Problem("layout", file, message))
    else:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        names = {Path(line.strip()).stem for line in lines if line.strip()}
        if not names:
            problems.append(Problem("layout", file, f"{file} is empty: it must list the training images"))
    return names


def _defect_folders(test: Path, masks: Path | None, problems: list[Problem], *, good: str) -> tuple[Sample, ...]:
    """The samples under ``test``: one sub-folder per defect type, ``good`` for images without defects."""
    if not test.is_dir():
        message = f"{test} does not exist: it holds the test images, in one sub-folder per defect type"
        problems.append(Problem("layout", test, message))
        return ()
    for loose in _files(test, IMAGE_EXTENSIONS):
        message = (
            f"{loose} has no label: move images without defects to {test / good} and the others to"
            f" {test}/NAME_OF_THE_DEFECT (to score unlabelled images use predict)"
        )
        problems.append(Problem("no label", loose, message))
    folders = _subfolders(test)
    if not folders:
        message = f"{test} is empty: put images without defects in {test / good}, others in one folder per defect"
        problems.append(Problem("layout", test, message))
    samples: list[Sample] = []
    for folder in folders:
        images = _images_in(folder, problems)
        if folder.name == good:
            samples += [Sample(image, False, None, "good") for image in images.values()]
        elif masks is not None and (found := _masks_in(masks / folder.name, images, folder, problems)) is not None:
            samples += _pair(images, found, folder, masks / folder.name, folder.name, problems)
        else:
            samples += [Sample(image, True, None, folder.name) for image in images.values()]
    if masks is not None:
        names = {folder.name for folder in folders}
        for folder in _subfolders(masks):
            for orphan in _files(folder, IMAGE_EXTENSIONS) if folder.name not in names else ():
                message = f"{orphan} is a mask without its image: there is no folder {test / folder.name}"
                problems.append(Problem("mask without image", orphan, message))
    return tuple(samples)


def _masks_in(
    folder: Path, images: dict[str, Path], image_dir: Path, problems: list[Problem]
) -> dict[str, Path] | None:
    """Masks by the stem of the image that they belong to, NAME or NAME_mask; None where there is no such folder."""
    if not folder.is_dir():
        message = f"{folder} does not exist: it holds the masks of the images in {image_dir}"
        problems.append(Problem("layout", folder, message))
        return None
    found: dict[str, Path] = {}
    for mask in _files(folder, IMAGE_EXTENSIONS):
        if mask.suffix.lower() not in LOSSLESS_EXTENSIONS:
            message = f"mask {mask} is in a format that may blur its edges: save masks as PNG"
            problems.append(Problem("lossy mask", mask, message))
        # An image may itself be called ..._mask, so a name that is an image's as it stands goes first.
        stem = mask.stem if mask.stem in images else mask.stem.removesuffix("_mask")
        if stem in found:
            message = f"{found[stem]} and {mask} are masks of the same image: remove one"
            problems.append(Problem("same name", mask, message))
        found.setdefault(stem, mask)
    return found


def _pair(
    images: dict[str, Path], masks: dict[str, Path], image_dir: Path, mask_dir: Path, defect: str,
    problems: list[Problem],
) -> list[Sample]:  # fmt: skip
    """The defective images of a folder, each with its mask."""
    missing = [image for stem, image in images.items() if stem not in masks]
    for image in missing:
        message = f"{image} has no mask in {mask_dir} ({len(missing)} of {len(images)} images have none)"
        problems.append(Problem("missing mask", image, message))
    for mask in (mask for stem, mask in masks.items() if stem not in images):
        problems.append(Problem("mask without image", mask, f"{mask} is a mask without its image in {image_dir}"))
    return [Sample(image, True, masks.get(stem), defect) for stem, image in images.items()]


def _images_in(folder: Path, problems: list[Problem], extensions: Iterable[str] = IMAGE_EXTENSIONS) -> dict[str, Path]:
    """The images directly in a folder by stem, in natural order."""
    if not folder.is_dir():
        problems.append(Problem("layout", folder, f"{folder} does not exist: it must hold images"))
        return {}
    found: dict[str, Path] = {}
    for path in _files(folder, extensions):
        if path.stem in found:
            message = f"{found[path.stem]} and {path} have the same name: masks are paired by it, rename one"
            problems.append(Problem("same name", path, message))
        found.setdefault(path.stem, path)
    if not found:
        message = f"{folder} holds no image (looked for {' '.join(sorted(extensions))})"
        problems.append(Problem("layout", folder, message))
    return found


def _files(folder: Path, extensions: Iterable[str]) -> list[Path]:
    paths = [p for p in folder.iterdir() if p.suffix.lower() in extensions and p.name[0] != "." and p.is_file()]
    return sorted(paths, key=natural_key)


def _subfolders(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."), key=natural_key)
