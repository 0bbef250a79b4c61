"""The four layouts on real data and on folders built here, and every way in which a folder can be wrong."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfrjax.datasets import DATASETS, load_dataset, read_image, read_mask
from sfrjax.errors import SfrjaxError


def build(root: Path, *names: str) -> Path:
    """Small images under ``root``: in ``names``, braces list alternatives as in a shell."""
    for name in names:
        head, _, rest = name.partition("{")
        inner, _, tail = rest.partition("}")
        for alternative in inner.split(",") if rest else [""]:
            path = root / (head + alternative + tail)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 255).save(path)
    return root


@pytest.fixture
def mvtec(tmp_path):
    return build(
        tmp_path / "mvtec", "cap/train/good/{0,1,2,10}.png", "cap/test/good/{0,1}.png", "cap/test/dent/{0,1}.png",
        "cap/test/hole/0.png", "cap/ground_truth/dent/{0,1}_mask.png", "cap/ground_truth/hole/0_mask.png",
        "nut/train/good/0.png", "nut/test/good/0.png", "nut/test/bent/0.png", "nut/ground_truth/bent/0_mask.png",
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return build(
        tmp_path / "valve", "nominal/{0,1}.png", "nominal/monday/0.jpg", "test/good/0.png", "test/dent/{0,1}.jpg",
        "test/loose_mask/0_mask.png", "masks/dent/0.png", "masks/dent/1_mask.bmp", "masks/loose_mask/0_mask_mask.png",
    )  # fmt: skip


@pytest.fixture
def mtd(tmp_path):
    root = build(
        tmp_path / "tiles", "MT_Free/Imgs/{a,b,c,d}.jpg", "MT_Free/Imgs/{a,b,c,d}.png",
        "MT_Crack/Imgs/{e,f}.jpg", "MT_Crack/Imgs/{e,f}.png", "MT_Uneven/Imgs/g.jpg", "MT_Uneven/Imgs/g.png",
    )  # fmt: skip
    (root / "train_filenames.txt").write_text("c.jpg\na.jpg\n\n")
    return root


def refused(message, name, root, categories=None):
    with pytest.raises(SfrjaxError, match=message):
        load_dataset(name, root, categories)


# What the layouts find


def test_mvtec(mvtec):
    cap, nut = load_dataset("mvtec", mvtec)
    assert (cap.name, nut.name) == ("cap", "nut")
    assert [path.name for path in cap.train] == ["0.png", "1.png", "2.png", "10.png"]
    assert [(s.defect, s.anomalous, s.mask and s.mask.name) for s in cap.test] == [
        ("dent", True, "0_mask.png"), ("dent", True, "1_mask.png"), ("good", False, None), ("good", False, None),
        ("hole", True, "0_mask.png"),
    ]  # fmt: skip
    assert cap.has_masks
    assert [s.mask.parent.name for s in cap.test if s.mask] == ["dent", "dent", "hole"]
    assert load_dataset("mvtec", str(mvtec), ["nut", "cap"]) == [nut, cap]
    assert load_dataset("mvtec", mvtec, ["nut"]) == [nut]


def test_a_broken_category_does_not_stand_in_the_way_of_another(mvtec):
    (mvtec / "cap/ground_truth/hole/0_mask.png").unlink()
    assert [category.name for category in load_dataset("mvtec", mvtec, ["nut"])] == ["nut"]


def test_btad(tmp_path):
    root = build(
        tmp_path, "01/train/ok/{0,1}.bmp", "01/test/ok/0.bmp", "01/test/ko/0.bmp", "01/ground_truth/ko/0.png",
        "03/train/ok/0.bmp", "03/test/ok/0.bmp", "03/test/ko/5.bmp", "03/ground_truth/ko/5.bmp",
    )  # fmt: skip
    first, third = load_dataset("btad", root)
    assert [(s.defect, s.anomalous) for s in first.test] == [("ko", True), ("good", False)]
    assert (len(first.train), len(third.train)) == (2, 1)
    assert first.test[0].mask == root / "01/ground_truth/ko/0.png"
    assert third.test[0].mask == root / "03/ground_truth/ko/5.bmp"


def test_mtd(mtd):
    (tiles,) = load_dataset("mtd", mtd)
    assert tiles.name == "mtd"
    assert tiles.mask_threshold == 127
    assert [path.name for path in tiles.train] == ["a.jpg", "c.jpg"]
    assert [(s.image.name, s.defect, s.mask and s.mask.name) for s in tiles.test] == [
        ("b.jpg", "good", None), ("d.jpg", "good", None), ("e.jpg", "crack", "e.png"), ("f.jpg", "crack", "f.png"),
        ("g.jpg", "uneven", "g.png"),
    ]  # fmt: skip


def test_folder(folder):
    (valve,) = load_dataset("folder", folder)
    assert valve.name == "valve"
    assert valve.has_masks
    assert [path.relative_to(folder).as_posix() for path in valve.train] == [
        "nominal/0.png", "nominal/1.png", "nominal/monday/0.jpg",
    ]  # fmt: skip
    assert [(s.image.name, s.defect, s.mask and s.mask.name) for s in valve.test] == [
        ("0.jpg", "dent", "0.png"), ("1.jpg", "dent", "1_mask.bmp"), ("0.png", "good", None),
        ("0_mask.png", "loose_mask", "0_mask_mask.png"),
    ]  # fmt: skip
    assert load_dataset("folder", folder, ["valve"]) == [valve]


def test_folder_without_masks(tmp_path):
    (part,) = load_dataset("folder", build(tmp_path / "part", "nominal/0.png", "test/good/0.png", "test/bad/0.png"))
    assert not part.has_masks
    assert [(s.anomalous, s.mask) for s in part.test] == [(True, None), (False, None)]


def test_folder_given_as_the_current_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert load_dataset("folder", ".")[0].name == "valve"


def test_hidden_files_and_notes_are_passed_over(mvtec):
    build(mvtec, "cap/train/good/._0.png", "cap/test/dent/.thumb.png", ".cache/train/good/0.png")
    (mvtec / "cap/test/dent/readme.txt").touch()
    (mvtec / "license.txt").touch()
    cap, _ = load_dataset("mvtec", mvtec)
    assert (len(cap.train), len(cap.test)) == (4, 5)


# What they refuse


@pytest.mark.parametrize("name", DATASETS)
def test_root_is_missing_or_empty(name, tmp_path):
    refused(r"absent does not exist", name, tmp_path / "absent")
    refused(tmp_path.name, name, tmp_path)


def test_unknown_names_list_the_known_ones(mvtec, folder, mtd):
    refused("'coco'.*mvtec, btad, mtd, folder", "coco", mvtec)
    refused("no category cup: found cap, nut", "mvtec", mvtec, ["cap", "cup"])
    refused("no category x: found valve", "folder", folder, ["x"])
    refused("no category x: found mtd", "mtd", mtd, ["x"])
    refused("name some of cap, nut", "mvtec", mvtec, [])


def test_root_one_level_too_deep(mvtec):
    refused("itself a category.*parent .*mvtec as the root and cap as the category", "mvtec", mvtec / "cap")
    refused(r"no folder nominal/.*choose the dataset mvtec", "folder", mvtec / "cap")


def test_nominal_images_missing(mvtec, folder):
    for path in (mvtec / "nut/train/good").iterdir():
        path.unlink()
    refused(r"good holds no image", "mvtec", mvtec)
    (mvtec / "nut/train/good").rmdir()
    refused(r"good does not exist", "mvtec", mvtec)
    (mvtec / "nut/train/good").touch()
    refused(r"good does not exist", "mvtec", mvtec)
    for path in (folder / "nominal").rglob("*.*"):
        path.unlink()
    refused("no image found in .*nominal", "folder", folder)


def test_image_without_mask(mvtec, folder, mtd):
    (mvtec / "cap/ground_truth/dent/1_mask.png").unlink()
    refused(r"dent.1\.png has no mask in .*ground_truth.dent \(1 of 2", "mvtec", mvtec)
    (folder / "masks/dent/0.png").unlink()
    refused(r"dent.0\.jpg has no mask", "folder", folder)
    (mtd / "MT_Crack/Imgs/f.png").unlink()
    refused(r"f\.jpg has no mask", "mtd", mtd)


def test_mask_without_image(mvtec, folder, mtd):
    build(mvtec, "cap/ground_truth/dent/7_mask.png")
    refused(r"7_mask\.png is a mask without its image", "mvtec", mvtec)
    build(folder, "masks/crack/0.png")
    refused(r"crack.0\.png is a mask without its image", "folder", folder)
    (mtd / "MT_Uneven/Imgs/g.jpg").unlink()
    build(mtd, "MT_Uneven/Imgs/h.jpg", "MT_Uneven/Imgs/h.png")
    refused(r"g\.png is a mask without its image", "mtd", mtd)


def test_mask_under_a_foreign_name(mvtec):
    """Only NAME and NAME_mask are its masks; a name that merely begins alike is nobody's."""
    (mvtec / "nut/ground_truth/bent/0_mask.png").rename(mvtec / "nut/ground_truth/bent/0_gt.png")
    refused("has no mask", "mvtec", mvtec)


def test_folder_of_masks_missing(mvtec):
    (mvtec / "nut/ground_truth/bent/0_mask.png").unlink()
    (mvtec / "nut/ground_truth/bent").rmdir()
    refused(r"ground_truth.bent does not exist.*masks", "mvtec", mvtec)


def test_duplicated_names(mvtec, folder):
    build(mvtec, "cap/test/dent/0.bmp")
    refused(r"0\.bmp and .*0\.png have the same name", "mvtec", mvtec)
    build(folder, "masks/dent/0_mask.png")
    refused("masks of the same image", "folder", folder)


def test_lossy_masks(folder):
    (folder / "masks/dent/0.png").unlink()
    build(folder, "masks/dent/0.jpg")
    refused(r"mask .*0\.jpg.*save masks as PNG", "folder", folder)


def test_unlabelled_test_images(folder):
    build(folder, "test/7.png")
    refused(r"7\.png has no label: move .*test.good .*predict", "folder", folder)


def test_no_test_images(folder, tmp_path):
    refused("test does not exist", "folder", build(tmp_path / "a", "nominal/0.png"))
    (tmp_path / "a/test").mkdir()
    refused("test is empty", "folder", tmp_path / "a")
    (tmp_path / "a/test/bad").mkdir()
    refused("bad holds no image", "folder", tmp_path / "a")


def test_mtd_needs_its_published_split(mtd):
    names = mtd / "train_filenames.txt"
    names.write_text("a.jpg\nz.jpg\n")
    refused(r"train_filenames\.txt names 1 images that .*lacks: z", "mtd", mtd)
    names.write_text("\n")
    refused("empty", "mtd", mtd)
    names.unlink()
    refused(r"train_filenames\.txt is missing: it lists the training images", "mtd", mtd)


# The real ones


def test_real_mvtec_bottle(shared_data):
    (bottle,) = load_dataset("mvtec", shared_data / "mvtec", ["bottle"])
    assert len(bottle.train) == 209
    assert Counter(s.defect for s in bottle.test) == {
        "good": 20, "broken_large": 20, "broken_small": 22, "contamination": 21,
    }  # fmt: skip
    for sample in bottle.test:
        assert sample.anomalous == (sample.mask is not None)
        if sample.mask is not None:
            assert sample.mask.stem == f"{sample.image.stem}_mask"
            assert sample.mask.parent.name == sample.image.parent.name == sample.defect
    mask = read_mask(bottle.test[0].mask, threshold=bottle.mask_threshold, shape=read_image(bottle.test[0].image, 8)[1])
    assert 0 < np.mean(mask) < 0.5


def test_real_magnetic_tiles(shared_data):
    (tiles,) = load_dataset("mtd", shared_data / "mtd")
    assert len(tiles.train) == 761
    assert Counter(s.defect for s in tiles.test) == {
        "good": 191, "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103,
    }  # fmt: skip
    assert sum(s.anomalous for s in tiles.test) == sum(s.mask is not None for s in tiles.test) == 392
    assert not set(tiles.train) & {s.image for s in tiles.test}
