"""How long a person waits for the command line: whole processes, from start to end.

    python benchmarks/startup.py --json FILE

`sfrjax --help`, and `sfrjax predict` of one image with EfficientNet-Lite0 from a bank of the demo's flange, its
compiled programs kept from a run before (as they are from the second run on). Medians and minima over rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
from common import device_name
from rich.console import Console
from rich.table import Table

from sfrjax.datasets.demo import write_demo_set

ROUNDS = 5
MAIN = "import sys; from sfrjax.cli import main; sys.argv[0] = 'sfrjax'; main()"


def main() -> None:
    """Time both commands in turn, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        flange = write_demo_set(Path(scratch, "demo")) / "flange"
        image = next((flange / "test" / "good").iterdir())
        bank, out = Path(scratch, "flange.bank"), Path(scratch, "out")
        _seconds("fit", flange / "train", "--out", bank)
        commands = {"--help": ("--help",), "predict, one image": ("predict", bank, image, "--out", out)}
        for command in commands.values():  # what is compiled here is kept
            _seconds(*command)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                times[name].append(_seconds(*command))
    rows = [
        {"command": name, "wall_median_s": statistics.median(values), "wall_min_s": min(values)}
        for name, values in times.items()
    ]
    result = {
        "device": device_name(),
        "command": "python benchmarks/startup.py --json FILE",
        "jax": jax.__version__,
        "rounds": ROUNDS,
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title=f"{result['device']}; seconds a process")
    for header in ("sfrjax", "median", "min"):
        table.add_column(header)
    for row in rows:
        table.add_row(row["command"], f"{row['wall_median_s']:.2f}", f"{row['wall_min_s']:.2f}")
    Console().print(table)


def _seconds(*arguments: object) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
