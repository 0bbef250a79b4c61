"""Every command and every piece of Python in README.md works as it stands there, in the order in which it stands."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from sfrjax import cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)

# What stands for the reader's own data, or takes weights or time that a test does not have.
STAND_INS = {
    "ROOT": "parts",
    "MVTEC": "sfrjax-demo/data",
    "bottle": "flange",
    "cable": "flange",
    "wide_resnet50_2": "efficientnet_lite0",
    "NEW": "new",
}
# Lines that make or change an environment; scripts/test.sh is what runs this test, and a fresh clone tries the others.
ENVIRONMENT = {
    "bash scripts/test.sh",
    "python3 -m venv .venv",
    "source .venv/bin/activate",
    "pip install .",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The demo as a reader has it after the first command, and a folder set made of it."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert _run(patch, "sfrjax demo") == 0
    demo = folder / "sfrjax-demo" / "data" / "flange"
    shutil.copytree(demo / "train" / "good", folder / "parts" / "nominal")
    shutil.copytree(demo / "test" / "good", folder / "parts" / "test" / "good")
    shutil.copytree(demo / "test" / "chip", folder / "parts" / "test" / "chip")
    (folder / "new").mkdir()
    shutil.copy(next((demo / "test" / "good").iterdir()), folder / "new")
    return folder


def _run(patch: pytest.MonkeyPatch, line: str) -> int:
    """Exit status."""
    patch.setattr(sys, "argv", [STAND_INS.get(word, word) for word in shlex.split(line, comments=True)])
    patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_every_command_works(folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines = [line.strip() for language, block in BLOCKS if language in ("", "bash") for line in block.splitlines()]
    commands = [line.partition("#")[0].strip() for line in lines if line]
    assert sum(command.startswith("sfrjax ") for command in commands) >= 5
    for command in commands:
        if command == "bash scripts/demo.sh":  # what the fixture has done
            assert (folder / "sfrjax-demo" / "report.html").is_file()
        elif command not in ENVIRONMENT:
            assert command.startswith("sfrjax "), f"say in this test what becomes of {command!r}"
            assert _run(monkeypatch, command) == 0, command
    for name in ("report.html", "scores.json", "scores.csv", "results.json"):
        assert (folder / "results" / name).is_file()


def test_every_piece_of_python_works(folder, monkeypatch):
    monkeypatch.chdir(folder)
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert len(blocks) >= 2
    for block in blocks:
        # One product is as good as three, and three times as fast.
        block = block.replace('"sfrjax-demo/data")', '"sfrjax-demo/data", ["flange"])')
        exec(compile(block, "README.md", "exec"), {})
