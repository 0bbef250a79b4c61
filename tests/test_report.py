"""Pictures and files that runs leave behind."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfrjax.errors import SfrjaxError
from sfrjax.files import output_folder, replacing
from sfrjax.pipeline import Metrics, Prediction
from sfrjax.report import (
    MASK_COLOUR,
    THRESHOLD_COLOUR,
    contact_sheet,
    draw,
    mean_metrics,
    output_stems,
    side_by_side,
    write_picture,
)


def prediction(tmp_path, size, region):
    path = tmp_path / "image.png"
    Image.new("RGB", size, (40, 40, 40)).save(path)
    anomaly_map = np.zeros(size[::-1], np.float32)
    anomaly_map[region] = 3.0
    return Prediction(path, 3.0, anomaly_map)


def test_overlay_outlines_what_is_above_the_threshold_and_the_truth(tmp_path):
    region = (slice(10, 30), slice(20, 40))
    mask = np.zeros((60, 80), bool)
    mask[40:50, 50:60] = True
    picture = np.asarray(side_by_side(draw(prediction(tmp_path, (80, 60), region), 1.0), mask))
    assert picture.shape == (60, 164, 3)
    left, right = picture[:, :80], picture[:, 84:]
    assert tuple(left[40, 55]) == MASK_COLOUR
    assert tuple(left[45, 55]) == (40, 40, 40)
    assert tuple(right[10, 30]) == THRESHOLD_COLOUR
    assert right[20, 30].sum() > 300  # hot
    assert tuple(right[55, 5]) == (40, 40, 40)


def test_overlay_of_a_large_image_is_reduced(tmp_path):
    region = (slice(1000, 1500), slice(1000, 1500))
    picture = side_by_side(draw(prediction(tmp_path, (3000, 2000), region), 1.0))
    assert picture.size == (2 * 1024 + 4, 683)


def test_overlay_with_a_threshold_of_zero(tmp_path):
    picture = np.asarray(side_by_side(draw(prediction(tmp_path, (80, 60), (slice(10, 30), slice(20, 40))), 0.0)))
    assert tuple(picture[10, 84 + 30]) == THRESHOLD_COLOUR


def test_overlay_without_a_threshold_has_no_line_and_runs_to_the_largest_value(tmp_path):
    region = (slice(10, 30), slice(20, 40))
    predicted = prediction(tmp_path, (80, 60), region)
    pictures = [np.asarray(draw(predicted, None, largest=x).overlay).astype(int) for x in (3.0, 6.0)]
    for picture in pictures:
        assert not (picture == THRESHOLD_COLOUR).all(axis=-1).any()
    assert pictures[0][20, 30].sum() > pictures[1][20, 30].sum()


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 5), (130, 77)])
def test_a_picture_is_read_back_as_it_was_written(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    write_picture(tmp_path / "a.png", Image.fromarray(pixels))
    with Image.open(tmp_path / "a.png") as read:
        read.verify()  # checksums
    read = Image.open(tmp_path / "a.png")
    assert (read.format, read.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(np.asarray(read), pixels)


def test_output_names():
    names = [Path("a/x.png"), Path("a/x.bmp"), Path("b/x.png"), Path("b/c/y.png")]
    assert output_stems(names) == [Path("a/x.png"), Path("a/x.bmp"), Path("b/x"), Path("b/c/y")]
    assert output_stems([Path("deep/er/x.tar.png")]) == [Path("x.tar")]
    three = output_stems([Path("x.png"), Path("x.bmp"), Path("x.png.png")])
    assert three == [Path("x.png"), Path("x.bmp"), Path("x.png.png")]


def test_output_names_are_the_links_own(tmp_path):
    (tmp_path / "blob.png").touch()
    links = [tmp_path / "in" / "1.png", tmp_path / "in" / "2.png"]
    links[0].parent.mkdir()
    for link in links:
        link.symlink_to(tmp_path / "blob.png")
    assert output_stems(links) == [Path("1"), Path("2")]


def test_means_are_over_the_categories_that_have_the_metric():
    mean = mean_metrics([Metrics(0.5, None, 1.0), Metrics(0.7, None, None)])
    assert mean == Metrics(pytest.approx(0.6), None, 1.0)


def test_contact_sheet(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    sheet = contact_sheet([("a", tmp_path / "a.png")] * 4, columns=3)
    assert sheet.size == (3 * 28, 2 * 38)


def _fail_half_way(path):
    path.write_text("half")
    raise ZeroDivisionError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        _fail_half_way(temporary)
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(SfrjaxError, match="cannot be written"), replacing(path / "below" / "file"):
        pass
    with replacing(tmp_path / "made" / "file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "made" / "file").read_text() == "new"
    with pytest.raises(SfrjaxError, match="file"):
        output_folder(path / "below")
