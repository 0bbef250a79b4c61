"""Pictures and files that runs leave behind."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion

from sfrjax.datasets.images import reduced
from sfrjax.errors import SfrjaxError
from sfrjax.evaluation import Metrics
from sfrjax.files import output_folder, replacing
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


def image_and_map(size, region):
    anomaly_map = np.zeros(size[::-1], np.float32)
    anomaly_map[region] = 3.0
    return Image.new("RGB", size, (40, 40, 40)), anomaly_map


def test_overlay_outlines_what_is_above_the_threshold_and_the_truth():
    region = (slice(10, 30), slice(20, 40))
    mask = np.zeros((60, 80), bool)
    mask[40:50, 50:60] = True
    picture = np.asarray(side_by_side(draw(*image_and_map((80, 60), region), 1.0), mask))
    assert picture.shape == (60, 164, 3)
    left, right = picture[:, :80], picture[:, 84:]
    assert tuple(left[40, 55]) == MASK_COLOUR
    assert tuple(left[45, 55]) == (40, 40, 40)
    assert tuple(right[10, 30]) == THRESHOLD_COLOUR
    assert right[20, 30].sum() > 300  # hot
    assert tuple(right[55, 5]) == (40, 40, 40)


def test_a_map_is_drawn_at_the_size_of_the_image_given():
    image, anomaly_map = image_and_map((300, 200), (slice(100, 150), slice(100, 150)))
    drawn = draw(reduced(image, 60), anomaly_map, 1.0)
    assert {picture.size for picture in drawn} == {(60, 40)}
    line = np.argwhere((np.asarray(drawn.overlay) == THRESHOLD_COLOUR).all(axis=-1))
    assert (line.min(axis=0).tolist(), line.max(axis=0).tolist()) == ([20, 20], [29, 29])
    assert reduced(image, 300) is image
    assert reduced(Image.new("L", (3000, 1)), 1024).size == (1024, 1)


@pytest.mark.parametrize(("width", "thick"), [(80, 1), (520, 2)])
def test_the_line_is_as_thick_as_the_picture_asks(width, thick):
    """Against scipy's erosion, of a region with a notch, at the image's corner."""
    above = np.zeros((60, width), bool)
    above[:25, :30] = True
    above[10:14, 8:13] = False
    drawn = draw(Image.new("RGB", (width, 60)), above.astype(np.float32), 0.5).overlay
    line = (np.asarray(drawn) == THRESHOLD_COLOUR).all(axis=-1)
    np.testing.assert_array_equal(line, above & ~binary_erosion(above, iterations=thick))


def test_overlay_with_a_threshold_of_zero():
    picture = np.asarray(side_by_side(draw(*image_and_map((80, 60), (slice(10, 30), slice(20, 40))), 0.0)))
    assert tuple(picture[10, 84 + 30]) == THRESHOLD_COLOUR


def test_overlay_without_a_threshold_has_no_line_and_runs_to_the_largest_value():
    region = (slice(10, 30), slice(20, 40))
    given = image_and_map((80, 60), region)
    pictures = [np.asarray(draw(*given, None, largest=x).overlay).astype(int) for x in (3.0, 6.0)]
    for picture in pictures:
        assert not (picture == THRESHOLD_COLOUR).all(axis=-1).any()
    assert pictures[0][20, 30].sum() > pictures[1][20, 30].sum()


@pytest.mark.parametrize(("name", "kind", "most"), [("a.png", "PNG", 0), ("a.jpg", "JPEG", 3)])
def test_a_picture_is_read_back_as_it_was_written(tmp_path, name, kind, most):
    ramp = np.add.outer(np.arange(77), np.arange(130)).astype(np.uint8)
    pixels = np.stack([ramp, ramp[::-1], ramp // 2], axis=-1)
    write_picture(tmp_path / name, Image.fromarray(pixels))
    read = Image.open(tmp_path / name)
    assert (read.format, read.mode) == (kind, "RGB")
    assert np.abs(np.asarray(read).astype(int) - pixels).mean() <= most


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
