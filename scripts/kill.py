"""Kill sfrjax at random moments, and look at what it leaves behind.

    python scripts/kill.py --rounds 40 --seed 0

Each round starts fit, fit --extend, predict or evaluate as a process of its own, over the output of the rounds before,
and sends it SIGKILL (sometimes SIGINT, as Ctrl-C does) at a random moment. Afterwards every bank must load and be the
one from before or the one that the command makes, every other output must be whole, and whatever else lies there must
have a temporary file's name. After SIGINT nothing temporary may be left, and the message must say how to go on.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from sfrjax.bank_file import load_bank

SETTINGS = ["--levels", "3,4", "--sampling", "none", "--s", "2"]
NOMINAL = 24
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.part")


def start(arguments: list[str], cache: Path) -> subprocess.Popen[str]:
    """`sfrjax ARGUMENTS` as a process of its own."""
    code = "from sfrjax.cli import main; main()"
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(arguments: list[str], cache: Path) -> float:
    """Run to the end; seconds that it took."""
    began = time.monotonic()
    process = start(arguments, cache)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"sfrjax {' '.join(arguments)} failed: {errors}")
    return time.monotonic() - began


def draw(root: Path) -> None:
    """A data set in the plain layout, of images large enough for files to take a moment to write."""
    rng = np.random.default_rng(0)
    names = [f"nominal/{i}" for i in range(NOMINAL)] + [f"more/{i}" for i in range(8)]
    names += [f"test/{kind}/{i}" for kind in ("good", "dent") for i in range(6)]
    for name in names:
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(path)
    mask = Image.new("L", (256, 256))
    mask.paste(255, (100, 100, 120, 120))
    (root / "masks" / "dent").mkdir(parents=True)
    for i in range(6):
        mask.save(root / "masks" / "dent" / f"{i}.png")


def look(folder: Path, allowed: set[str]) -> list[str]:
    """What is wrong with the files of a folder; banks are known by the SHA-256 of their contents."""
    wrong = []
    for path in (path for path in folder.rglob("*") if path.is_file() and not TEMPORARY.fullmatch(path.name)):
        try:
            match path.suffix:
                case ".bank":
                    load_bank(path)
                    if identity(path) not in allowed:
                        wrong.append(f"{path} is neither the old bank nor the new one")
                case ".json":
                    json.loads(path.read_text())
                case ".tiff":
                    tifffile.imread(path)
                case ".jpg":
                    Image.open(path).load()
                case ".csv":
                    if not path.read_text().endswith("\n"):
                        wrong.append(f"{path} is cut short")
                case ".html":
                    if not path.read_text().rstrip().endswith("</html>"):
                        wrong.append(f"{path} is cut short")
                case _:
                    wrong.append(f"{path} has no business here")
        except Exception as error:
            wrong.append(f"{path}: {error!r}")
    return wrong


def identity(bank: Path) -> str:
    """A bank's contents in one line: fits of the same images and settings agree in it, bit for bit."""
    loaded = load_bank(bank)
    return f"{loaded.n_images} images, {np.asarray(loaded.nominal_scores).tobytes().hex()}"


def rounds(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """How each round ended, and what was wrong."""
    rng = np.random.default_rng(seed)
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sfrjax-kill-") as name:
        here = Path(name)
        draw(here)
        cache, out = here / "xla", here / "out"
        banks = {key: here / "whole" / f"{key}.bank" for key in ("few", "all")}
        commands = {
            "fit": ["fit", str(here / "nominal"), "--out", str(out / "part.bank"), *SETTINGS],
            "extend": ["fit", str(here / "more"), "--extend", str(out / "part.bank")],
            "predict": ["predict", str(banks["few"]), str(here / "test"), "--out", str(out / "predicted")],
            "evaluate": ["evaluate", "--dataset", "folder", "--root", str(here), "--out", str(out / "eval"), *SETTINGS],
        }
        finish(["fit", str(here / "nominal"), "--out", str(banks["few"]), *SETTINGS], cache)
        shutil.copy(banks["few"], banks["all"])
        finish(["fit", str(here / "more"), "--extend", str(banks["all"])], cache)
        allowed = {identity(path) for path in banks.values()}
        out.mkdir()
        shutil.copy(banks["few"], out / "part.bank")
        seconds = {command: finish(arguments, cache) for command, arguments in commands.items()}
        for number in range(count):
            command = list(commands)[number % len(commands)]
            if command == "extend":
                shutil.copy(banks["few"], out / "part.bank")
            sent = signal.SIGINT if number // len(commands) % 3 == 2 else signal.SIGKILL  # every command gets both
            for path in out.rglob("*.part"):
                path.unlink()
            process = start(commands[command], cache)
            # Mostly towards the end, where files are written.
            time.sleep(seconds[command] * float(rng.beta(2, 1)) * 1.1)
            process.send_signal(sent)
            _, errors = process.communicate()
            ended = "had finished" if process.returncode == 0 else sent.name
            found = look(out, allowed)
            if sent == signal.SIGINT and process.returncode not in (0, -signal.SIGINT):
                found += [f"left over: {path}" for path in out.rglob("*.part")]
                if "Traceback" in errors or "interrupted" not in errors:
                    found.append(f"message: {errors[-1000:]}")
            ends[f"{command}: {ended}"] += 1
            wrong += [f"round {number}, {command}, {sent.name}: {problem}" for problem in found]
    return ends, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ends, wrong = rounds(options.rounds, options.seed)
    for problem in wrong:
        print(problem)
    for end, count in sorted(ends.items()):
        print(f"{count:4} {end}")
    print(f"{options.rounds} rounds, {len(wrong)} problems")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
