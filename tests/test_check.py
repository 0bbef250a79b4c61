"""`sfrjax check`: each problem is found in a folder that has it, and none in a folder that has none."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfrjax.check import check_dataset, check_images
from sfrjax.datasets import load_dataset
from sfrjax.errors import SfrjaxError
from sfrjax.settings import Settings
from tests.test_cli import run

SETTINGS = Settings(levels=(3,), sampling="none", s=2)
OPTIONS = ["--levels", "3", "--sampling", "none", "--s", "2"]


def picture(seed, size=(300, 280)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A data set without anything to complain about, of 6 nominal images."""
    root = tmp_path_factory.mktemp("check") / "part"
    for seed, name in enumerate(
        [*(f"nominal/{i}" for i in range(6)), "test/good/0", "test/good/1", "test/dent/0", "test/dent/1"]
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / f"{name}.png")
    (root / "masks" / "dent").mkdir(parents=True)
    for i in range(2):
        mask = Image.new("L", (300, 280))
        mask.paste(255, (140, 140, 160, 160))
        mask.save(root / "masks" / "dent" / f"{i}.png")
    return root


@pytest.fixture
def part(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "part")


def checked(root, settings=SETTINGS):
    (report,) = check_dataset("folder", root, settings=settings)
    return report


def found(root, settings=SETTINGS):
    """{kind: (severity, names of the files)} of what a check finds."""
    report = checked(root, settings)
    return {
        finding.kind: (finding.severity, [item.path.relative_to(root).as_posix() for item in finding.items])
        for finding in report.findings
    }


def edit_mask(path, box, value=255):
    mask = Image.open(path)
    mask.paste(value, box)
    mask.save(path)


def test_nothing_to_complain_about(sound):
    report = checked(sound)
    assert report.findings == ()
    assert report.ok
    assert (report.nominal, report.test_good, report.test_anomalous) == (6, 2, 2)
    # EfficientNet-Lite0's level 3 is 16 x 16 x 112, in float32, and a Gram matrix of 6 images.
    assert report.cost.bank_bytes == 4 * (6 * 16 * 16 * 112 + 6 * 6)
    assert report.cost.seconds > 0
    assert "measured" in report.cost.basis


def test_every_problem_is_named_at_once(part):
    cut = part / "nominal" / "0.png"
    cut.write_bytes(cut.read_bytes()[:5000])
    (part / "nominal" / "1.png").write_text("no image")
    (part / "test" / "good" / "1.png").write_bytes(b"")
    (part / "masks" / "dent" / "0.png").unlink()
    Image.new("L", (10, 10)).save(part / "masks" / "dent" / "1.png")
    Image.new("L", (10, 10)).save(part / "masks" / "dent" / "7.png")
    assert found(part, Settings(levels=(3,))) == {
        "missing mask": ("error", ["test/dent/0.png"]),
        "mask without image": ("error", ["masks/dent/7.png"]),
        "unreadable image": ("error", ["nominal/0.png", "nominal/1.png", "test/good/1.png"]),
        "too few nominal images": ("error", []),
        "unusable mask": ("error", ["masks/dent/1.png"]),
    }
    with pytest.raises(SfrjaxError, match=r"dent/0\.png has no mask .* 1 more: `sfrjax check`"):
        load_dataset("folder", part)


@pytest.mark.parametrize(
    ("kind", "severity", "change"),
    [
        ("palette image", "warning", lambda image: image.convert("P")),
        ("CMYK image", "warning", lambda image: image.convert("CMYK")),
        ("16-bit grey image", "note", lambda image: Image.fromarray(np.asarray(image.convert("L")) * np.uint16(257))),
        ("unreadable image", "error", lambda image: Image.fromarray(np.asarray(image.convert("L"), np.float32))),
        ("transparent image", "warning", lambda image: (image.putalpha(100), image)[1]),
    ],
)
def test_unusual_modes(part, kind, severity, change):
    (part / "nominal" / "2.png").unlink()
    change(picture(2)).save(part / "nominal" / "2.tif")
    findings = found(part)
    assert findings[kind] == (severity, ["nominal/2.tif"])
    assert ("mixed modes" in findings) == (severity != "error")


def test_sixteen_bit_colour_is_noticed(part):
    """Pillow reads 16-bit PNGs in colour as 8 bit without a word; this one is written by hand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    values = np.random.default_rng(0).integers(0, 65536, (280, 900)).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    header = struct.pack(">IIBBBBB", 300, 280, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (part / "nominal" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert found(part)["16-bit colour image"] == ("note", ["nominal/2.png"])


def test_opaque_alpha_and_plain_grey_are_not_unusual(part):
    for path in part.rglob("*.png"):
        if "masks" not in path.parts:
            Image.open(path).convert("LA").save(path)
    assert found(part) == {}


def test_rotation_and_frames(part):
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(1).save(part / "nominal" / "1.png", exif=exif)
    (part / "nominal" / "2.png").unlink()
    picture(2).save(part / "nominal" / "2.tif", save_all=True, append_images=[picture(3)])
    findings = found(part)
    assert findings["rotated image"] == ("note", ["nominal/1.png"])
    assert findings["several frames"] == ("note", ["nominal/2.tif"])


def test_sizes_and_aspect_ratios(part):
    picture(1, (600, 560)).save(part / "nominal" / "1.png")
    assert found(part) == {"mixed sizes": ("note", [])}
    picture(1, (600, 280)).save(part / "nominal" / "1.png")
    assert found(part) == {"mixed aspect ratios": ("warning", [])}
    picture(1, (100, 93)).save(part / "nominal" / "1.png")
    assert found(part)["small image"] == ("note", ["nominal/1.png"])


def test_test_images_of_another_size(part):
    for path in (part / "nominal").iterdir():
        Image.open(path).resize((310, 290)).save(path)
    severity, files = found(part)["test images of another size"]
    assert severity == "warning"
    assert len(files) == 4


def test_blank_full_and_grey_masks(part):
    masks = part / "masks" / "dent"
    edit_mask(masks / "0.png", (0, 0, 300, 280), 0)
    edit_mask(masks / "1.png", (0, 0, 300, 280))
    assert found(part) == {
        "blank mask": ("warning", ["masks/dent/0.png"]),
        "mask that covers its image": ("warning", ["masks/dent/1.png"]),
    }
    edit_mask(masks / "0.png", (100, 100, 200, 200), 100)
    edit_mask(masks / "0.png", (120, 120, 150, 150), 200)
    edit_mask(masks / "1.png", (0, 0, 100, 100), 0)
    assert found(part) == {"mask that is not binary": ("warning", ["masks/dent/0.png"])}


def test_defects_that_a_crop_would_delete(part):
    path = part / "masks" / "dent" / "0.png"
    edit_mask(path, (0, 0, 300, 280), 0)
    # 256 / 280 * 300 = 274 pixels wide, of which the crop takes 25 to 249, so columns 27.3 to 272.3 of the image.
    edit_mask(path, (0, 100, 26, 120))
    assert found(part) == {"defect that a crop would delete": ("note", ["masks/dent/0.png"])}
    edit_mask(path, (0, 100, 29, 120))
    assert found(part) == {}


def test_copies(part):
    """By content: the copies have other names and formats."""
    picture(0).save(part / "nominal" / "copy.tif")
    picture(1).save(part / "test" / "good" / "7.bmp")
    picture(6).save(part / "test" / "good" / "8.bmp")  # test/good/0
    shutil.copy(part / "test" / "dent" / "0.png", part / "test" / "good" / "9.png")
    assert found(part) == {
        "nominal image twice": ("warning", ["nominal/copy.tif"]),
        "test image among the nominal ones": ("warning", ["test/good/7.bmp"]),
        "contradictory labels": ("warning", ["test/good/9.png"]),
        "test image twice": ("note", ["test/good/8.bmp"]),
    }


def test_too_few_images_of_a_kind(part):
    assert found(part, Settings(levels=(3,), s_ref=7, s=2))["too few nominal images"] == ("error", [])
    assert found(part, Settings(levels=(3,), s_ref=6, s=2)) == {}
    shutil.rmtree(part / "test" / "good")
    assert found(part) == {"one class only": ("warning", [])}


def test_an_incomplete_folder_is_still_looked_at(part):
    shutil.rmtree(part / "nominal")
    (part / "test" / "good" / "0.png").write_text("no image")
    findings = found(part)
    assert findings["layout"] == ("error", ["nominal"])
    assert findings["unreadable image"] == ("error", ["test/good/0.png"])
    assert checked(part).cost is None


def test_weights_that_are_not_there(part, tmp_path, monkeypatch):
    monkeypatch.setenv("SFRJAX_CACHE", str(tmp_path / "cache"))
    named = check_images(part / "nominal", Settings(backbone="resnet18", levels=(1,), sampling="none", s=2))
    assert [(f.severity, f.kind) for f in named.findings] == [("warning", "weights")]
    given = check_images(part / "nominal", SETTINGS, weights=tmp_path / "no.pth")
    assert [(f.severity, f.kind) for f in given.findings] == [("error", "weights")]


def test_on_the_command_line(capsys, part):
    status, out, _ = run(capsys, "check", part / "nominal", *OPTIONS)
    assert (status, "fit would work" in out) == (0, True)
    for i in range(7):
        (part / "nominal" / f"[red]{i}.png").write_text("no image")
    status, out, _ = run(capsys, "check", "--dataset", "folder", "--root", part, *OPTIONS)
    assert status == 1
    assert "error: unreadable image (7)" in out
    assert "[red]0.png" in out
    assert "and 2 more" in out
    assert "would not work" in out
    status, out, _ = run(capsys, "check", "--dataset", "folder", "--root", part, "--json", *OPTIONS)
    content = json.loads(out)
    assert (status, content["ok"]) == (1, False)
    (category,) = content["categories"]
    (finding,) = category["findings"]
    assert [Path(item["path"]).name for item in finding["items"]] == [f"[red]{i}.png" for i in range(7)]
    assert category["fit"]["bank_bytes"] > 0
    assert content["settings"]["levels"] == [3]


def test_what_check_asks_for(capsys, part, tmp_path):
    for arguments, words in (
        ([], "IMAGES"),
        (["--dataset", "folder"], "--root"),
        ([part, "--dataset", "folder", "--root", part], "either"),
        (["--dataset", "coco", "--root", part], "--dataset coco"),
        ([part, "--category", "a"], "--category"),
        ([tmp_path / "nowhere"], "nowhere"),
    ):
        status, _, err = run(capsys, "check", *arguments)
        assert status == 1
        assert err.startswith("sfrjax: ")
        assert words in err


def test_real_magnetic_tiles(shared_data):
    (report,) = check_dataset("mtd", shared_data / "mtd", settings=Settings(levels=(3,), s_ref=10, s=7))
    findings = {finding.kind: finding for finding in report.findings}
    assert report.ok
    assert {item.path.parent.parent.name for item in findings["blank mask"].items} == {"MT_Uneven"}
    assert len(findings["blank mask"].items) == 4
    assert len(findings["defect that a crop would delete"].items) == 162
    assert findings["mask that is not binary"].severity == "note"
    assert "mixed aspect ratios" in findings
