"""The demonstration set: the same pixels every time, masks exactly where the defect is, and a layout that loads."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sfrjax.datasets import load_dataset, read_image, read_mask
from sfrjax.datasets.demo import N_GOOD, N_PER_DEFECT, N_TRAIN, PRODUCTS, draw, write_demo_set
from sfrjax.datasets.demo.drawing import SIZE
from sfrjax.errors import SfrjaxError

KINDS = [(product, kind) for product, (_, defects) in PRODUCTS.items() for kind in ("train", "good", *defects)]
DEFECTIVE = [(product, kind) for product, kind in KINDS if kind not in ("train", "good")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_demo_set(tmp_path_factory.mktemp("demo") / "set")


@pytest.mark.parametrize(("product", "kind"), KINDS)
def test_same_seed_same_pixels(product, kind):
    np.random.seed(1)  # noqa: NPY002  the global generator must have no say
    first = draw(product, kind, 1)
    np.random.seed(2)  # noqa: NPY002
    draw(product, "train", 0, seed=9)
    for a, b in zip(first, draw(product, kind, 1), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.picture.shape == (SIZE, SIZE, 3)
    assert first.picture.dtype == np.uint8


@pytest.mark.parametrize("product", PRODUCTS)
def test_pictures_vary_from_part_to_part_and_from_seed_to_seed(product):
    one, other, seeded = draw(product, "train", 0), draw(product, "train", 1), draw(product, "train", 0, seed=1)
    good = draw(product, "good", 0)
    for a, b in ((one, other), (one, seeded), (one, good), (other, seeded)):
        assert np.mean(a.picture != b.picture) > 0.5


@pytest.mark.parametrize(("product", "kind"), DEFECTIVE)
def test_the_defect_is_in_the_mask_and_nowhere_else(product, kind):
    for index in range(3):
        picture, mask, without = draw(product, kind, index)
        changed = (picture != without).any(axis=2)
        assert not (changed & ~mask).any()
        assert 25 <= np.count_nonzero(mask) <= 0.05 * mask.size
        # Not merely somewhere in it: the mask is no looser than closing small gaps and holes in the defect makes it.
        filled = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(changed, 8), iterations=6))[8:-8, 8:-8]
        assert np.count_nonzero(mask & ~filled) <= 0.1 * np.count_nonzero(mask)
        difference = np.abs(picture.astype(int) - without)[mask].max()
        assert difference >= 4  # faint, yet two standard deviations of the noise


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("kind", ["train", "good"])
def test_good_parts_have_no_mask(product, kind):
    picture, mask, without = draw(product, kind, 3)
    assert not mask.any()
    np.testing.assert_array_equal(picture, without)


def test_written_set_loads_as_mvtec(written):
    categories = load_dataset("mvtec", written)
    assert [category.name for category in categories] == list(PRODUCTS)
    for category in categories:
        defects = PRODUCTS[category.name][1]
        assert len(category.train) == N_TRAIN
        expected = {"good": N_GOOD, **dict.fromkeys(defects, N_PER_DEFECT)}
        assert Counter(sample.defect for sample in category.test) == expected
        for sample in category.test:
            index = int(sample.image.stem)
            if index == 0:
                drawing = draw(category.name, sample.defect, index)
                pixels, shape = read_image(sample.image, SIZE)
                np.testing.assert_array_equal(pixels, drawing.picture)
                if sample.mask is not None:
                    mask = read_mask(sample.mask, threshold=category.mask_threshold, shape=shape)
                    np.testing.assert_array_equal(mask, drawing.mask)
            if sample.mask is not None:
                assert read_mask(sample.mask, threshold=0, shape=(SIZE, SIZE)).any()
            assert (sample.mask is not None) == sample.anomalous


def test_foreign_files_are_not_mixed_in(written):
    stray = written / "flange" / "train" / "good" / "mine.png"
    Image.new("RGB", (4, 4)).save(stray)
    with pytest.raises(SfrjaxError, match=r"mine\.png is not part of the demonstration set: choose an empty folder"):
        write_demo_set(written)
    stray.unlink()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SfrjaxError, match=r"cannot write the demonstration set to .*file"):
        write_demo_set(tmp_path / "file" / "set")
