"""Throw damaged files and senseless arguments at sfrjax, and report everything that a user should not have seen.

    python scripts/fuzz.py --minutes 10 --seed 1

A case fails where anything but SystemExit leaves the command line, where a refusal names neither the file nor the
option, where output is half-written or an older bank is lost, and where a case takes longer than a minute. Cases run
in this process, a few as processes of their own; the exit status is 1 if any failed, each with the seed that repeats
it: --seed S --case N.
"""

import argparse
import contextlib
import functools
import io
import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from safetensors import safe_open

from sfrjax import cli, pipeline, runs
from sfrjax.bank_file import load_bank, write_tensors
from sfrjax.check import cost
from sfrjax.check.masks import inspect_mask
from sfrjax.datasets.images import image_shape, inspect_image, read_image
from sfrjax.errors import SfrjaxError

SECONDS_PER_CASE = 60
SIZE = (40, 36)
SETTINGS = ["--levels", "last", "--sampling", "none", "--s", "2"]
NUMBERS = [
    "",
    "0",
    "-1",
    "1",
    "2",
    "7",
    "1e400",
    "nan",
    "-inf",
    "99999999999999999999",
    "0x10",
    "²",
    "1,2",
    "--",
    "a b",
]
VALUES: list[Any] = [None, True, -1, 0, 2, 10**9, 10**30, 1.5, 1e308, float("nan"), "", "last", "x" * 300, [], [1], {}]


class Failure(Exception):
    """What a user should not have seen."""


class Corpus:
    """Sound files to start from, in a folder of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        rng = np.random.default_rng(0)
        self.root = folder / "part"
        for name in (*(f"nominal/{i}" for i in range(4)), "test/good/0", "test/good/1", "test/dent/0", "test/dent/1"):
            path = self.root / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            _picture(rng).save(path)
        mask = Image.new("L", SIZE)
        mask.paste(255, (10, 10, 20, 20))
        (self.root / "masks" / "dent").mkdir(parents=True)
        for i in range(2):
            mask.save(self.root / "masks" / "dent" / f"{i}.png")
        self.images = list(_formats(folder / "formats", _picture(rng)))
        self.masks = list(_formats(folder / "masks", mask))
        self.bank = folder / "sound.bank"
        status, text = run(["fit", str(self.root / "nominal"), "--out", str(self.bank), *SETTINGS])
        assert status == 0, text


def _picture(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def _formats(folder: Path, image: Image.Image) -> Iterator[bytes]:
    """The file contents of one image in many formats and modes."""
    folder.mkdir()
    grey = image.convert("L")
    alpha = image.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    cases: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((image, name, {}) for name in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "TGA", "JPEG2000",
                                          "AVIF")),
        (image, "TIFF", {"compression": "tiff_lzw"}), (image, "TIFF", {"compression": "jpeg"}),
        (image, "TIFF", {"compression": "tiff_adobe_deflate"}), (image, "JPEG", {"progressive": True, "exif": exif}),
        (image.convert("CMYK"), "JPEG", {}), (image.convert("P"), "PNG", {"transparency": 3}), (alpha, "PNG", {}),
        (alpha, "WEBP", {}), (deep, "PNG", {}), (deep, "TIFF", {}), (grey, "PNG", {}), (grey.convert("1"), "TIFF", {}),
        (image, "PNG", {"save_all": True, "append_images": [image]}), (grey.convert("F"), "TIFF", {}),
    ]  # fmt: skip
    for i, (picture, name, options) in enumerate(cases):
        path = folder / str(i)
        with contextlib.suppress(OSError, KeyError):  # a format that this Pillow was built without
            picture.save(path, format=name, **options)
            yield path.read_bytes()


# Damage


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes with one to three things wrong with them."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(changed) + 1))
        size = int(rng.integers(1, 17))
        match int(rng.integers(8)):
            case 0:
                del changed[at:]
            case 1:
                changed[at : at + size] = rng.bytes(size)
            case 2:
                for position in rng.integers(max(1, len(changed)), size=size):
                    changed[int(position) : int(position) + 1] = bytes([1 << int(rng.integers(8))])
            case 3:
                del changed[at : at + size]
            case 4:
                changed[at:at] = rng.bytes(size)
            case 5:
                changed[at : at + 4] = bytes(rng.choice([0, 0xFF, 0x7F, 0x80], 4).astype(np.uint8))
            case 6:
                early = int(rng.integers(min(64, len(changed)) + 1))  # headers are where it hurts
                changed[early : early + 2] = rng.bytes(2)
            case 7:
                changed = bytearray(_png_header(rng, bytes(changed)))
    return bytes(changed)


def _png_header(rng: np.random.Generator, data: bytes) -> bytes:
    """A PNG that claims another size, depth or colour type, its checksum right."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        return data[::-1] if rng.random() < 0.1 else data
    header = list(struct.unpack(">IIBBBBB", data[16:29]))
    which = int(rng.integers(7))
    header[which] = int(rng.choice([0, 1, 2, 3, 16, 255] if which > 1 else [0, 1, 41, 4000, 2**31 - 1, 2**32 - 1]))
    body = b"IHDR" + struct.pack(">IIBBBBB", *header)
    return data[:12] + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


def altered(rng: np.random.Generator, value: Any) -> Any:
    """JSON with one value somewhere replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = str(rng.choice(list(value)))
        if rng.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: altered(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.5:
        at = int(rng.integers(len(value)))
        return [*value[:at], altered(rng, value[at]), *value[at + 1 :]]
    return VALUES[int(rng.integers(len(VALUES)))]


# Running


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit status and everything printed by `sfrjax ARGUMENTS` in this process."""
    out = io.StringIO()
    argv, sys.argv = sys.argv, ["sfrjax", *arguments]
    status: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cli.main()
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        sys.argv = argv
    return status, out.getvalue()


def run_apart(arguments: list[str]) -> tuple[int, str]:
    """The same as a process of its own."""
    code = "from sfrjax.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, errors="replace")
    return done.returncode, done.stdout + done.stderr


def examine(status: int, text: str, arguments: list[str], names: list[str]) -> None:
    """Raise Failure unless this is success, or a refusal that names one of `names` or an option."""
    if "Traceback" in text or status not in (0, 1, 2):
        raise Failure(f"exit status {status}: {text[-2000:]}")
    if status and "--json" in arguments and text.startswith("{"):  # what `check` found, for programs
        json.loads(text)
        return
    if status and not any(sign in text for sign in ("sfrjax: ", "Usage: ", "─ Error ─", "would not work")):
        raise Failure(f"no reason given: {text[-500:]!r}")
    options = [argument for argument in arguments if argument.startswith("--")]
    argument_names = ["--", "IMAGES", "BANK", "Missing", "No such command", "level ", *options]
    if status and not any(name in text for name in [*names, *argument_names] if name):
        raise Failure(f"names no file and no option: {text[-500:]!r}")


def examine_output(folder: Path) -> None:
    """Raise Failure where a file is left over or cannot be read."""
    for path in folder.rglob("*"):
        if path.suffix == ".part":
            raise Failure(f"left over: {path}")
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".tiff":
            tifffile.imread(path)
        elif path.suffix == ".jpg":
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".bank":
            load_bank(path)


# What to attack: each takes the random numbers, the corpus and an empty folder


def image_reader(rng: np.random.Generator, corpus: Corpus, here: Path) -> None:
    """Readers by themselves, which is fast."""
    path = here / "image.png"
    path.write_bytes(damaged(rng, corpus.images[int(rng.integers(len(corpus.images)))]))
    for read in (lambda: read_image(path, 32), lambda: inspect_image(path), lambda: image_shape(path)):
        with contextlib.suppress(SfrjaxError):
            try:
                read()
            except SfrjaxError as error:
                if str(path) not in str(error):
                    raise Failure(f"names no file: {error}") from error
                raise


def mask_reader(rng: np.random.Generator, corpus: Corpus, here: Path) -> None:
    path = here / "mask.png"
    path.write_bytes(damaged(rng, corpus.masks[int(rng.integers(len(corpus.masks)))]))
    mask = inspect_mask(path, threshold=0, shape=(SIZE[1], SIZE[0]))
    if mask.error and str(path) not in mask.error:
        raise Failure(f"names no file: {mask.error}")


def image(rng: np.random.Generator, corpus: Corpus, here: Path) -> None:
    path = here / "image.png"
    path.write_bytes(damaged(rng, corpus.images[int(rng.integers(len(corpus.images)))]))
    arguments = ["predict", str(corpus.bank), str(path), "--out", str(here / "out")]
    examine(*run(arguments), arguments, [str(path)])
    examine_output(here / "out")


def bank(rng: np.random.Generator, corpus: Corpus, here: Path) -> None:
    """Damaged bytes, or a bank whose checksum is right and whose content is not."""
    path = here / "damaged.bank"
    if rng.random() < 0.5:
        path.write_bytes(damaged(rng, corpus.bank.read_bytes()))
    else:
        with safe_open(corpus.bank, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            about = json.loads(file.metadata()["sfrjax_bank"])
        if rng.random() < 0.7:
            about = altered(rng, about)
        else:
            name = str(rng.choice(list(tensors)))
            wrong = [
                tensors[name][:-1],
                tensors[name].T,
                (tensors[name] * np.nan).astype(np.float32),
                tensors[name].astype(np.float16),
            ]
            tensors[name] = np.ascontiguousarray(wrong[int(rng.integers(4))])
        write_tensors(path, json.dumps(about), tensors)
    arguments = ["predict", str(path), str(corpus.root / "test"), "--out", str(here / "out")]
    examine(*run(arguments), arguments, [str(path)])
    examine_output(here / "out")


def folder(rng: np.random.Generator, corpus: Corpus, here: Path) -> None:
    """A data set with files damaged, gone, renamed, or something else in their place."""
    root = here / "part"
    shutil.copytree(corpus.root, root)
    names = [str(root)]
    for _ in range(rng.integers(1, 3)):
        files = [path for path in root.rglob("*.png") if path.is_file() and not path.is_symlink()]
        path = files[int(rng.integers(len(files)))]
        names.append(path.name)
        match int(rng.integers(7)):
            case 0 | 1:
                path.write_bytes(damaged(rng, path.read_bytes()))
            case 2:
                path.unlink()
            case 3:
                path.rename(path.with_name(str(rng.choice(["9.png", "0.bmp", "x_mask.png", ".png", "a\udcff.png"]))))
            case 4:
                path.unlink()
                path.mkdir()
            case 5:
                path.unlink()
                path.symlink_to(here / "nowhere")
            case 6:
                shutil.rmtree(path.parent)
    command = str(rng.choice(["check", "evaluate", "fit"]))
    arguments = ["--dataset", "folder", "--root", str(root), *SETTINGS]
    if command == "fit":
        arguments = [str(root / "nominal"), *SETTINGS]
    if command != "check":
        arguments += ["--out", str(here / "out" / ("new.bank" if command == "fit" else ""))]
    arguments.insert(0, command)
    examine(*run(arguments), arguments, names)
    examine_output(here / "out")


def arguments(rng: np.random.Generator, corpus: Corpus, here: Path) -> None:
    """Options with senseless values, in senseless combinations; an older bank must survive what fails."""
    old = here / "out" / "old.bank"
    old.parent.mkdir()
    shutil.copy(corpus.bank, old)
    (here / "file").write_text("text")
    (here / "loop").symlink_to(here / "loop")
    os.mkfifo(here / "pipe.png")
    nominal, test = str(corpus.root / "nominal"), str(corpus.root / "test")
    paths = [
        nominal, test, "", ".", "/", "/dev/null", "/proc/self/mem", str(here / "nowhere"), str(here / "file"),
        str(here / "loop"), str(here / "pipe.png"), str(here / ("x" * 300)), str(corpus.bank), str(here / "a\udcff"),
    ]  # fmt: skip
    names = [
        "full",
        "pixel",
        "random",
        "none",
        "subspace",
        "last",
        "4",
        "resnet18.nothing",
        "folder",
        "efficientnet_lite0",
    ]
    words = [*NUMBERS, *paths[2:], *names]
    commands = {
        "fit": [nominal, "--out", str(old), *SETTINGS],
        "predict": [str(corpus.bank), test, "--out", str(here / "out")],
        "evaluate": ["--dataset", "folder", "--root", str(corpus.root), "--out", str(here / "out"), *SETTINGS],
        "check": [nominal, *SETTINGS],
        "weights": [str(rng.choice(["list", "verify", "convert", ""]))],
    }
    command = str(rng.choice(list(commands), p=[0.35, 0.3, 0.2, 0.1, 0.05]))
    given = [command, *commands[command]]
    options = ["--backbone", "--weights", "--levels", "--reference", "--sampling", "--mode", "--s-ref", "--s", "--eps",
               "--neighbourhood", "--dtype", "--atoms-dtype", "--seed", "--batch-size", "--category", "--quantile",
               "--dataset", "--root", "--out", "--method", "--json", "--no-such-option", "--threshold"]  # fmt: skip
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(1, len(given) + 1))
        match int(rng.integers(5)):
            case 0 if at < len(given):
                given[at] = str(rng.choice(words))
            case 1 if at < len(given):
                del given[at]
            case _:
                given += [str(rng.choice(options)), str(rng.choice(words))]
    if any(given[i : i + 2] == ["--out", place] for i in range(len(given)) for place in ("", ".", "/", "/dev/null")):
        return  # would write here, and may
    if "/" in given:
        return  # all images of this machine
    before = old.read_bytes()
    status, text = (run_apart if rng.random() < 0.01 else run)(given)
    examine(status, text, given, [part for part in given[1:] if part])
    if status and old.read_bytes() != before:
        raise Failure("an older bank was changed by a command that failed")
    examine_output(here / "out")


TARGETS: dict[Callable[[np.random.Generator, Corpus, Path], None], float] = {
    image_reader: 0.45, mask_reader: 0.15, image: 0.1, bank: 0.1, folder: 0.05, arguments: 0.15,
}  # fmt: skip


def _too_long(*_: Any) -> None:
    raise Failure(f"more than {SECONDS_PER_CASE} s")


def attack(seed: int, case: int, corpus: Corpus) -> tuple[str, str]:
    """(target, what went wrong or "") of one case, which seed and number determine."""
    rng = np.random.default_rng([seed, case])
    target = list(TARGETS)[int(rng.choice(len(TARGETS), p=list(TARGETS.values())))]
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS_PER_CASE)
    here = Path(tempfile.mkdtemp(dir=corpus.folder, prefix="case"))
    try:
        with contextlib.chdir(here):
            target(rng, corpus, here)
        return target.__name__, ""
    except Failure as failure:
        return target.__name__, str(failure)
    except Exception:
        return target.__name__, traceback.format_exc()
    finally:
        signal.alarm(0)
        shutil.rmtree(here, ignore_errors=True)


@contextlib.contextmanager
def prepared() -> Iterator[Corpus]:
    """A corpus, and an environment in which nothing is loaded or compiled twice; both gone afterwards."""
    loaded = pipeline.load_backbone
    cached = functools.cache(loaded)
    untrained = cost.untrained_backbone
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="sfrjax-fuzz-") as folder:
        try:
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(folder) / "xla"))
            os.environ["SFRJAX_CACHE"] = str(Path(folder) / "cache")
            pipeline.load_backbone = runs.load_backbone = cached  # type: ignore[assignment]
            cost.untrained_backbone = functools.cache(untrained)  # type: ignore[assignment]
            yield Corpus(Path(folder))
        finally:
            pipeline.load_backbone = runs.load_backbone = loaded
            cost.untrained_backbone = untrained
            os.environ.clear()
            os.environ.update(environment)


def fuzz(
    seed: int, seconds: float = math.inf, first: int = 0, cases: float = math.inf
) -> tuple[Counter[str], list[str]]:
    """Numbers of cases by target, and the failures, of as many cases as asked for or the time allows."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    with prepared() as corpus:
        end = time.monotonic() + seconds
        case = first
        while case - first < cases and time.monotonic() < end:
            target, wrong = attack(seed, case, corpus)
            counts[target] += 1
            if wrong:
                failures.append(f"--seed {seed} --case {case} ({target}): {wrong}")
            case += 1
    return counts, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one only")
    options = parser.parse_args()
    if options.case is not None:
        with prepared() as corpus:
            target, wrong = attack(options.seed, options.case, corpus)
        print(f"{target}: {wrong or 'ok'}")
        sys.exit(bool(wrong))
    counts, failures = fuzz(options.seed, 60 * options.minutes)
    for failure in failures:
        print(failure, end="\n\n")
    print(f"{sum(counts.values())} cases, {len(failures)} failures")
    for target, count in counts.most_common():
        print(f"  {target}: {count}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
