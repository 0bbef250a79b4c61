"""Batches: every image once, in order, whatever the batch size; unreadable ones named or left out."""

import jax
import numpy as np
import pytest
from PIL import Image

from sfrjax import features
from sfrjax.backbones import load_backbone
from sfrjax.errors import SfrjaxError
from sfrjax.features import extract, image_batches


@pytest.fixture
def images(tmp_path):
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (20 + i, 30), (i, 2 * i, 3 * i)).save(paths[-1])
    return paths


@pytest.mark.parametrize("batch_size", [1, 2, 7, 10])
def test_every_image_once_and_in_order(images, batch_size):
    batches = list(image_batches(images, size=16, batch_size=batch_size))
    assert [path for batch in batches for path in batch.paths] == images
    assert [shape for batch in batches for shape in batch.shapes] == [(30, 20 + i) for i in range(7)]
    assert {batch.images.shape for batch in batches} == {(batch_size, 16, 16, 3)}
    rows = np.concatenate([batch.images[: len(batch.paths)] for batch in batches])
    np.testing.assert_array_equal(rows[:, 3, 3], [(i, 2 * i, 3 * i) for i in range(7)])


def test_an_unreadable_image_is_named(images):
    images[3].write_bytes(images[3].read_bytes()[:40])
    with pytest.raises(SfrjaxError, match=r"3\.png"):
        list(image_batches(images, size=16, batch_size=2))


def test_an_unreadable_image_is_left_out_and_listed(images):
    images[3].write_bytes(b"")
    images[6].unlink()
    skipped = []
    batches = list(image_batches(images, size=16, batch_size=2, skipped=skipped))
    assert [path for batch in batches for path in batch.paths] == [images[i] for i in (0, 1, 2, 4, 5)]
    assert [path for path, _ in skipped] == [images[3], images[6]]
    assert "3.png" in skipped[0].reason


def test_the_images_themselves_come_with_the_batch(images):
    Image.linear_gradient("L").save(images[0])
    batches = list(image_batches(images, size=16, batch_size=2, picture_side=25))
    pictures = [picture for batch in batches for picture in batch.pictures]
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert [picture.size for picture in pictures] == [(25, 25)] + [(round((20 + i) * 25 / 30), 25) for i in range(1, 7)]
    expected = np.asarray(Image.linear_gradient("L").resize((25, 25), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(np.asarray(pictures[0])[..., 0], expected)
    for plain, batch in zip(image_batches(images, size=16, batch_size=2), batches, strict=True):
        assert plain.pictures == ()
        np.testing.assert_array_equal(plain.images, batch.images)


def test_no_image_is_read_far_ahead(images, monkeypatch):
    read = []
    monkeypatch.setattr(features, "read_with_picture", lambda path, **_: (read.append(path), _blank(16))[1])
    batches = image_batches(images * 20, size=16, batch_size=2)
    next(batches)
    batches.close()
    assert len(read) <= 2 + 4 + features.THREADS


def _blank(size):
    return np.zeros((size, size, 3), np.uint8), (size, size), None


def test_features_do_not_depend_on_the_rest_of_the_batch_and_are_traced_once():
    backbone = load_backbone("efficientnet_lite0", levels=(2, "last"))
    images = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    before = features._extract._cache_size()
    together = extract(backbone, images)
    again = extract(backbone, images[::-1])
    assert features._extract._cache_size() == before + 1
    assert list(together) == [2, "last"]
    assert together[2].shape == (4, 8, 8, 40)
    assert together["last"].shape[1:3] == (1, 1)
    for level in together:
        assert together[level].dtype == jax.numpy.float32
        np.testing.assert_allclose(together[level], again[level][::-1], atol=1e-5)


@pytest.mark.parametrize("side", [3, 5])
def test_features_are_averaged_over_their_neighbourhood(side):
    """Against a loop over positions; positions outside the map do not count."""
    backbone = load_backbone("efficientnet_lite0", levels=(3,))
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), dtype=np.uint8)
    plain = np.asarray(extract(backbone, images)[3], np.float64)
    averaged = np.asarray(extract(backbone, images, neighbourhood=side)[3])
    for y in range(plain.shape[1]):
        for x in range(plain.shape[2]):
            rows = slice(max(0, y - side // 2), y + side // 2 + 1)
            columns = slice(max(0, x - side // 2), x + side // 2 + 1)
            expected = plain[:, rows, columns].mean((1, 2))
            np.testing.assert_allclose(averaged[:, y, x], expected, rtol=1e-4, atol=1e-4)
