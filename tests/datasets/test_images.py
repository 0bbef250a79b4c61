"""Every mode and depth against values worked out by hand; every unreadable file named in the message."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from sfrjax.datasets import IMAGE_EXTENSIONS, list_images, read_image, read_mask
from sfrjax.datasets.images import image_shape, inspect_image, open_rgb
from sfrjax.errors import SfrjaxError

RAMP = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)


def save(path, image, **options):
    Image.fromarray(image).save(path, **options) if isinstance(image, np.ndarray) else image.save(path, **options)
    return path


def pixels(path, size=4):
    return read_image(path, size)[0]


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


# Modes and depths


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "pgm"])
def test_eight_bit_grey(tmp_path, extension):
    np.testing.assert_array_equal(pixels(save(tmp_path / f"a.{extension}", RAMP)), grey(RAMP))


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled_by_the_full_range(tmp_path, extension):
    """65535 is white and 0 black whatever the image holds: half the light stays half the light."""
    path = save(tmp_path / f"a.{extension}", RAMP.astype(np.uint16) * 257)
    np.testing.assert_array_equal(pixels(path), grey(RAMP))
    half = save(tmp_path / f"b.{extension}", RAMP.astype(np.uint16) * 257 // 2)
    assert np.abs(pixels(half).astype(int) - grey(RAMP // 2)).max() <= 1


def test_big_endian_sixteen_bit(tmp_path):
    image = Image.frombytes("I;16B", (4, 4), (RAMP.astype(np.uint16) * 257).astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(save(tmp_path / "a.tif", image)), grey(RAMP))


def test_sixteen_bit_black_is_black_but_twelve_bits_are_refused(tmp_path):
    assert not pixels(save(tmp_path / "black.png", np.zeros((4, 4), np.uint16))).any()
    with pytest.raises(SfrjaxError, match=r"dim\.png.*4095 of 65535.*12 bits"):
        pixels(save(tmp_path / "dim.png", np.full((4, 4), 4095, np.uint16)))


def test_one_bit(tmp_path):
    bits = RAMP > 100
    np.testing.assert_array_equal(pixels(save(tmp_path / "a.png", Image.fromarray(bits))), grey(bits * 255))


def test_palette_is_looked_up(tmp_path):
    image = Image.frombytes("P", (4, 4), (RAMP // 16).tobytes())
    image.putpalette([v for i in range(16) for v in (i * 10, 0, 255 - i)])
    values = pixels(save(tmp_path / "a.png", image))
    index = RAMP // 16
    np.testing.assert_array_equal(values, np.stack([index * 10, index * 0, 255 - index], axis=2))


def test_transparency_becomes_black(tmp_path):
    """Colours hidden under transparent pixels must not matter, in each of the ways a file can be transparent."""
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., :3] = [200, 100, 50]
    rgba[..., 3] = [[255], [255], [0], [128]]
    values = pixels(save(tmp_path / "rgba.png", rgba)).astype(int)
    np.testing.assert_array_equal(values[:2], np.broadcast_to([200, 100, 50], (2, 4, 3)))
    assert not values[2].any()
    assert np.abs(values[3] - [100, 50, 25]).max() <= 1

    la = np.stack([np.full((4, 4), 90, np.uint8), rgba[..., 3]], axis=2)
    np.testing.assert_array_equal(pixels(save(tmp_path / "la.png", la))[:3], grey(np.array([[90] * 4] * 2 + [[0] * 4])))

    palette = Image.frombytes("P", (4, 4), bytes([0, 1] * 8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    values = pixels(save(tmp_path / "p.png", palette, transparency=1))
    assert values[0, 0].tolist() == [10, 20, 30]
    assert values[0, 1].tolist() == [0, 0, 0]

    values = pixels(save(tmp_path / "l.png", Image.fromarray(RAMP), transparency=240))
    assert values[-1, -1].tolist() == [0, 0, 0]
    assert values[-1, -2].tolist() == [224] * 3


def test_cmyk_and_lab(tmp_path):
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert pixels(save(tmp_path / "a.tif", cmyk))[0, 0].tolist() == [255, 0, 0]
    profile = ImageCms.createProfile("sRGB")
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (4, 4), (10, 200, 30)), profile, ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert np.abs(pixels(save(tmp_path / "b.tif", lab))[0, 0].astype(int) - [10, 200, 30]).max() <= 25


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "floating-point"), (np.int32, "32-bit integer")])
def test_values_without_black_and_white_are_refused(tmp_path, dtype, kind):
    path = save(tmp_path / "a.tif", RAMP.astype(dtype))
    with pytest.raises(SfrjaxError, match=rf"a\.tif holds {kind}.*8 or 16 bit"):
        pixels(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """Stored as a camera would for each orientation, an upright picture comes back upright, and so does its shape."""
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    T = Image.Transpose
    undo = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
            7: T.TRANSVERSE, 8: T.ROTATE_270}  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", stored, exif=exif)
    values, shape = read_image(path, 6)
    assert shape == (4, 6)
    np.testing.assert_array_equal(values, grey(np.asarray(upright.resize((6, 6), Image.Resampling.BILINEAR))))
    np.testing.assert_array_equal(read_mask(path, threshold=99, shape=(4, 6)), np.asarray(upright) > 99)


def test_animation_gives_its_first_frame(tmp_path):
    first, second = Image.new("L", (4, 4), 30), Image.new("L", (4, 4), 200)
    for name in ("a.gif", "a.tif"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert (pixels(tmp_path / name) == 30).all()


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_a_comment_is_left_behind(tmp_path, mode):
    Image.new("RGB", (4, 4)).convert(mode).save(tmp_path / "a.gif", comment=b"x" * 70_000)
    picture = open_rgb(tmp_path / "a.gif")
    picture.save(tmp_path / "a.jpg")  # Pillow would refuse the comment as too long
    assert "comment" not in Image.open(tmp_path / "a.jpg").info


# Resizing


def test_squashed_and_antialiased(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (60, 100))
    values, shape = read_image(save(tmp_path / "a.png", stripes), 20)
    assert values.shape == (20, 20, 3)
    assert values.dtype == np.uint8
    assert shape == (60, 200)
    assert np.abs(values.astype(int) - 127).max() < 20  # subsampling without a filter would give 0 or 255


def test_grey_and_colour_files_of_the_same_picture_agree(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    one = pixels(save(tmp_path / "l.png", picture), 16)
    three = pixels(save(tmp_path / "rgb.png", grey(picture)), 16)
    np.testing.assert_array_equal(one, three)


# Files that cannot be read


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "tif"])
def test_truncated_file_is_named(tmp_path, extension):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"whole.{extension}", noise)
    pixels(path)
    for share in (0.9, 0.5, 0.01, 0):
        cut = tmp_path / f"cut.{extension}"
        cut.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(SfrjaxError, match=rf"cut\.{extension} cannot be read"):
            read_image(cut, 8)


def test_damaged_png_is_named(tmp_path):
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF  # the header's width, which its checksum protects
    path.write_bytes(data)
    with pytest.raises(SfrjaxError, match=r"a\.png"):
        read_image(path, 8)


@pytest.mark.parametrize("transparency", [{}, {"transparency": 0}])
def test_a_png_without_its_palette_is_named(tmp_path, transparency):
    image = Image.new("P", (4, 4))
    image.putpalette([9, 9, 9])
    path = save(tmp_path / "a.png", image, **transparency)
    data = path.read_bytes()
    at = data.index(b"PLTE") - 4
    (length,) = struct.unpack(">I", data[at : at + 4])
    path.write_bytes(data[:at] + data[at + 12 + length :])
    for read in (pixels, inspect_image, lambda path: read_mask(path, threshold=0, shape=(4, 4))):
        with pytest.raises(SfrjaxError, match=r"a\.png cannot be read as an image \(its palette is missing\)"):
            read(path)


def test_no_image_at_all(tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    for name in ("a.png", "folder.png", "absent.png"):
        with pytest.raises(SfrjaxError, match=name):
            read_image(tmp_path / name, 8)


def test_decompression_bomb_is_refused_before_decoding(tmp_path):
    path = save(tmp_path / "bomb.png", RAMP)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 20000, 20000)  # the header claims 400 million pixels
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(SfrjaxError, match=r"bomb\.png is too large.*tiles"):
        read_image(path, 8)


# Masks


def test_mask_threshold_is_exclusive(tmp_path):
    path = save(tmp_path / "m.png", RAMP)
    np.testing.assert_array_equal(read_mask(path, threshold=128, shape=(4, 4)), RAMP > 128)
    np.testing.assert_array_equal(read_mask(path, threshold=0, shape=(4, 4)), RAMP > 0)


def test_masks_of_every_kind_give_the_same_regions(tmp_path):
    region = np.zeros((5, 7), bool)
    region[1:3, 2:6] = True
    palette = Image.frombytes("P", (7, 5), region.astype(np.uint8).tobytes())
    palette.putpalette([0, 0, 0, 0, 0, 128])  # a label colour with hardly any luminance
    rgba = np.concatenate(
        [np.repeat(region[..., None] * np.uint8(255), 3, axis=2), np.full((5, 7, 1), 255, np.uint8)], 2
    )
    masks = {
        "labels.png": region.astype(np.uint8), "bits.png": Image.fromarray(region), "grey.tif": region * np.uint8(255),
        "deep_labels.png": region.astype(np.uint16), "palette.png": palette, "rgba.png": rgba, "rgb.bmp": rgba[..., :3],
        "deep.png": region * np.uint16(65535),
    }  # fmt: skip
    for name, mask in masks.items():
        found = read_mask(save(tmp_path / name, mask), threshold=0, shape=(5, 7))
        assert found.dtype == np.bool_
        np.testing.assert_array_equal(found, region, err_msg=name)
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png", threshold=127, shape=(5, 7)), region)
    assert not read_mask(tmp_path / "labels.png", threshold=127, shape=(5, 7)).any()


def test_mask_of_another_size_names_both(tmp_path):
    path = save(tmp_path / "m.png", RAMP)
    with pytest.raises(SfrjaxError, match=r"m\.png is 4 x 4 pixels but its image is 8 x 6"):
        read_mask(path, threshold=0, shape=(6, 8))


# Listing


def test_folders_are_searched_and_sorted_naturally(tmp_path):
    for name in [
        "b/im10.png",
        "b/im2.PNG",
        "b/im1.jpeg",
        "a/x.tif",
        "a/.hidden.png",
        ".git/y.png",
        "a/notes.txt",
        "z.bmp",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path])]
    assert names == ["a/x.tif", "b/im1.jpeg", "b/im2.PNG", "b/im10.png", "z.bmp"]
    assert list_images(tmp_path) == list_images([tmp_path, tmp_path / "z.bmp", str(tmp_path / "a")])


def test_a_file_named_directly_is_kept_whatever_its_extension(tmp_path):
    (tmp_path / "scan.raw").touch()
    assert list_images([tmp_path / "scan.raw"]) == [tmp_path / "scan.raw"]


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.png").touch()
    (tmp_path / "set").mkdir()
    try:
        os.symlink(tmp_path / "store", tmp_path / "set" / "link", target_is_directory=True)
        os.symlink(tmp_path / "set", tmp_path / "store" / "loop", target_is_directory=True)
    except OSError:
        pytest.skip("this file system has no links")
    assert [path.name for path in list_images(tmp_path / "set")] == ["a.png"]


def test_nothing_found_says_where_it_looked(tmp_path):
    with pytest.raises(SfrjaxError, match=rf"no image found in .*{tmp_path.name}.*\.png"):
        list_images(tmp_path)
    with pytest.raises(SfrjaxError, match="does not exist"):
        list_images([tmp_path / "absent"])
    with pytest.raises(SfrjaxError, match="no image"):
        list_images([])


def test_every_listed_extension_is_one_that_pillow_opens():
    Image.init()
    readable = {extension for extension, name in Image.registered_extensions().items() if name in Image.OPEN}
    assert readable >= IMAGE_EXTENSIONS - {".avif", ".j2k", ".jp2", ".webp"}  # those depend on how Pillow was built


def test_real_images_of_both_shared_sets(shared_data):
    values, shape = read_image(shared_data / "mvtec/bottle/train/good/000.png", 256)
    assert values.shape == (256, 256, 3)
    assert shape == (450, 450)
    blank = 0
    for path in sorted((shared_data / "mtd/MT_Uneven/Imgs").glob("*.png")):
        _, shape = read_image(path.with_suffix(".jpg"), 32)
        blank += not read_mask(path, threshold=127, shape=shape).any()
    assert blank == 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_shape_from_the_header_is_the_shape_read(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    assert image_shape(path) == read_image(path, 16)[1]
    path.write_bytes(b"nothing")
    with pytest.raises(SfrjaxError, match=r"photo\.jpg"):
        image_shape(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (lambda path: read_image(path, 4), image_shape):
        with pytest.raises(SfrjaxError, match=r"a\.png cannot be read .*not a regular file"):
            read(tmp_path / "a.png")
