"""How fast `sfrjax.omp` is, beside its peers and the machine's own limits.

    python benchmarks/omp.py --json FILE

Workloads (float32 data, absolute rule, exactly s atoms): W1 shared dictionary D=64 N=256 B=10000, s=8 and 16. W2 shared
D=512 N=1024 B=1000 s=17. W3 a few long signals, D=524288 N=200 s=17, B=1 and 8, Gram matrix given: correlations,
solve and residual. W4 a dictionary per signal, P=1024 D=512 s=17, N=200 and 40, Gram matrices given.

Peers: scikit-learn (float64: its float32 has an absolute threshold), SPAMS (`pip install spams-bin`, two threads;
solves orthogonal least squares, so a speed anchor only, and cannot take the Gram matrix on W3 and W4), a NumPy loop in
Gram space, and on a GPU orthogonal-matching-pursuit-gpu. A peer that is not installed is left out, with a line
saying so.
"sfrjax" is the plain call, "sfrjax-jit" the same inside a jitted function.
Rounds are interleaved, so that a slow spell of the machine meets all; before every timed call that takes less than a
second are a pause, in which the threads of the one before go to sleep, and untimed calls, after which its own are
awake. `support_agreement` is the share of signals with the same set of atoms as a float64 NumPy OMP. Floors: W1 and W2
the necessary flops over the measured rate of a large matrix product; W3 (atoms once, plus s rows per signal) and W4
(atoms once) bytes over the measured rate of a large sum.
"""

import argparse
import importlib
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sfrjax.pursuit import omp, residual

WARM = 0.1  # seconds: a virtual machine's idle cores, and threads asleep, take some calls to get up to speed
PAUSE = 0.1  # seconds: a library's threads wait actively for a while after its call, which takes a core from the next
FAST, SLOW = 15, 2  # rounds; SLOW for what takes over a second


class Workload(NamedTuple):
    """One problem: atoms `[N, D]` or `[P, N, D]`, signals `[B, D]`, Gram given or None, floor in seconds."""

    name: str
    atoms: np.ndarray
    signals: np.ndarray
    s: int
    gram: np.ndarray | None
    with_residual: bool
    floor: float


def main() -> None:
    """Measure, write the JSON, print the table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="write the results to this file")
    parser.add_argument("--workloads", nargs="*", help="only these, such as W1-s8")
    arguments = parser.parse_args()
    peers, left_out = find_peers()
    bandwidth, gemm = stream_rate(), gemm_rate()
    print(f"{device_name()}: stream {bandwidth / 1e9:.1f} GB/s, float32 matrix product {gemm / 1e9:.0f} GFLOP/s")
    for line in left_out:
        print(line)
    rows, floors = [], {}
    for make in WORKLOADS:
        if arguments.workloads and make[0] not in arguments.workloads:
            continue
        work = build(*make, bandwidth, gemm)
        floors[work.name] = work.floor
        rows += measure(work, peers)
        print(f"{work.name} done", flush=True)
    result = {
        "device": device_name(),
        "command": "python benchmarks/omp.py --json FILE",
        "jax": jax.__version__,
        "stream_bytes_per_s": bandwidth,
        "gemm_flops_per_s": gemm,
        "left_out": left_out,
        "floors": floors,
        "rows": rows,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


WORKLOADS = (
    ("W1-s8", 64, 256, 10000, 8),
    ("W1-s16", 64, 256, 10000, 16),
    ("W2", 512, 1024, 1000, 17),
    ("W3-B1", 524288, 200, 1, 17),
    ("W3-B8", 524288, 200, 8, 17),
    ("W4-N200", 512, 200, 1024, 17),
    ("W4-N40", 512, 40, 1024, 17),
)


def build(name: str, d: int, n: int, b: int, s: int, bandwidth: float, gemm: float) -> Workload:
    """Random data of a workload (unit-norm atoms, the same in every run) and its floor."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((b, n, d) if name.startswith("W4") else (n, d), dtype=np.float32)
    atoms /= np.linalg.norm(atoms, axis=-1, keepdims=True)
    signals = rng.standard_normal((b, d), dtype=np.float32)
    gram = None if name[:2] in ("W1", "W2") else np.matmul(atoms, atoms.swapaxes(-1, -2))
    if gram is None:
        floor = (2 * n * n * d + 2 * b * n * d + b * n * s * (s - 1)) / gemm
    else:
        floor = (atoms.nbytes + (b * s * d * 4 if name.startswith("W3") else 0)) / bandwidth
    return Workload(name, atoms, signals, s, gram, name.startswith("W3"), floor)


def find_peers() -> tuple[dict[str, Callable], list[str]]:
    """Runners of the peers that are installed, and a line for each that is not."""
    wanted = {"scikit-learn": ("sklearn.linear_model", scikit_learn), "spams": ("spams", spams)}
    left_out = []
    if jax.default_backend() == "gpu":
        wanted["omp-gpu"] = ("orthogonal_matching_pursuit_gpu", omp_gpu)
    else:
        left_out.append("orthogonal-matching-pursuit-gpu left out: no GPU here")
    peers: dict[str, Callable] = {"sfrjax": sfrjax, "sfrjax-jit": sfrjax_jit, "numpy": numpy_loop}
    for name, (module, runner) in wanted.items():
        try:
            importlib.import_module(module)
            peers[name] = runner
        except ImportError:
            left_out.append(f"{name} left out: no module {module} here")
    return peers, left_out


def sfrjax(work: Workload) -> Callable[[], list[set[int]]]:
    """Each runner prepares its inputs, untimed, and returns the call to time, which returns the supports as arrays."""
    return _sfrjax(work, lambda function: function)


def sfrjax_jit(work: Workload) -> Callable[[], list[set[int]]]:
    """Inside a function of the user's that is jitted, where all is one program."""
    return _sfrjax(work, jax.jit)


def _sfrjax(work: Workload, transform: Callable) -> Callable[[], list[set[int]]]:
    atoms, signals = jax.device_put((work.atoms, work.signals))
    gram = None if work.gram is None else jax.device_put(work.gram)

    def solve(atoms, signals, gram):  # type: ignore[no-untyped-def]
        code = omp(atoms, signals, n_nonzero_coefs=work.s, gram=gram)
        return code.support, residual(atoms, signals, code) if work.with_residual else code.coef

    call = transform(solve)
    return lambda: jax.block_until_ready(call(atoms, signals, gram))[0]


def numpy_loop(work: Workload) -> Callable[[], list]:
    """A loop over signals in Gram space, in the data's own precision."""

    def run() -> list:
        atoms, gram = work.atoms, work.gram
        if gram is None:
            gram = atoms @ atoms.T
        if atoms.ndim == 3:
            return [_one(gram[p], atoms[p] @ y, work.s)[0] for p, y in enumerate(work.signals)]
        codes = [_one(gram, c, work.s) for c in work.signals @ atoms.T]
        if work.with_residual:
            [y - coef @ atoms[support] for y, (support, coef) in zip(work.signals, codes, strict=True)]
        return [support for support, _ in codes]

    return run


def _one(gram: np.ndarray, correlations: np.ndarray, s: int) -> tuple[list[int], np.ndarray]:
    support: list[int] = []
    alpha, coef = correlations, correlations[:0]
    for _ in range(s):
        score = np.abs(alpha)
        score[support] = -1
        support.append(int(np.argmax(score)))
        rows = gram[support]
        coef = np.linalg.solve(rows[:, support], correlations[support])
        alpha = correlations - coef @ rows
    return support, coef


def scikit_learn(work: Workload) -> Callable[[], list]:
    """float64, as its users would call it: Gram matrix precomputed."""
    from sklearn.linear_model import orthogonal_mp, orthogonal_mp_gram

    atoms, signals = work.atoms.astype(np.float64), work.signals.astype(np.float64)
    gram = None if work.gram is None else work.gram.astype(np.float64)

    def run() -> list:
        if atoms.ndim == 3:
            codes = [
                orthogonal_mp_gram(g, x @ y, n_nonzero_coefs=work.s)
                for g, x, y in zip(gram, atoms, signals, strict=True)
            ]
        elif gram is None:
            codes = orthogonal_mp(atoms.T, signals.T, n_nonzero_coefs=work.s, precompute=True).T
        else:
            codes = np.atleast_2d(orthogonal_mp_gram(gram, atoms @ signals.T, n_nonzero_coefs=work.s).T)
            [y - c[c != 0] @ atoms[c != 0] for y, c in zip(signals, codes, strict=True)]
        return [np.flatnonzero(c) for c in codes]

    return run


def spams(work: Workload) -> Callable[[], list]:
    """Two threads; atoms are columns in Fortran order, which is the transpose of ours without a copy."""
    import spams as library

    # Where every signal is a call of its own, a second thread costs far more than it brings.
    options = {"L": work.s, "eps": 0.0, "numThreads": 2 if work.atoms.ndim == 2 else 1}

    def run() -> list:
        if work.atoms.ndim == 3:
            columns = [
                library.omp(np.asfortranarray(y[:, None]), x.T, **options)
                for x, y in zip(work.atoms, work.signals, strict=True)
            ]
            return [c.indices for c in columns]
        code = library.omp(work.signals.T, work.atoms.T, **options)
        code = code.tocsc()
        supports = [code.indices[a:b] for a, b in zip(code.indptr[:-1], code.indptr[1:], strict=True)]
        if work.with_residual:
            work.signals - (code.T @ work.atoms)
        return supports

    return run


def omp_gpu(work: Workload) -> Callable[[], list]:
    """The GPU peer, in its Batch-OMP form; shared dictionaries only."""
    import torch
    from orthogonal_matching_pursuit_gpu import run_omp

    atoms = torch.as_tensor(work.atoms.T.copy(), device="cuda")
    signals = torch.as_tensor(work.signals, device="cuda")

    def run() -> list:
        coef = run_omp(atoms, signals, work.s, precompute=True, tol=0.0, normalize=False, fit_intercept=False, alg="v0")
        torch.cuda.synchronize()
        return coef

    return run


def measure(work: Workload, peers: dict[str, Callable]) -> list[dict]:
    """Interleaved rounds of all peers on one workload; the first, untimed one compiles and gives the supports."""
    double = numpy_loop(
        work._replace(
            atoms=work.atoms.astype(np.float64),
            signals=work.signals.astype(np.float64),
            gram=None if work.gram is None else _double_gram(work.atoms),
        )
    )
    reference = [set(support) for support in double()]
    calls, agreement = {}, {}
    for name, runner in peers.items():
        if name == "omp-gpu" and work.atoms.ndim == 3:
            continue
        calls[name] = runner(work)
        out = calls[name]()
        agreement[name] = float(np.mean([_support(o) == r for o, r in zip(_rows(out), reference, strict=True)]))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for i in range(FAST):
        for name, call in calls.items():
            if i < SLOW or times[name][0][0] < 1:
                if not times[name] or times[name][0][0] < 1:
                    time.sleep(PAUSE)
                    start = time.perf_counter()
                    while time.perf_counter() - start < WARM:
                        call()
                wall, cpu = time.perf_counter(), time.process_time()
                call()
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return [
        {
            "workload": work.name,
            "impl": name,
            "wall_median_s": float(np.median([w for w, _ in t])),
            "wall_min_s": min(w for w, _ in t),
            "cpu_median_s": float(np.median([c for _, c in t])),
            "support_agreement": agreement[name],
        }
        for name, t in times.items()
    ]


def _double_gram(atoms: np.ndarray) -> np.ndarray:
    atoms = atoms.astype(np.float64)
    return np.matmul(atoms, atoms.swapaxes(-1, -2))


def _rows(out: object) -> list:
    if hasattr(out, "cpu"):  # dense coefficients of the GPU peer
        return [np.flatnonzero(row) for row in out.cpu().numpy()]
    return list(np.asarray(out)) if isinstance(out, jax.Array) else list(out)  # type: ignore[call-overload]


def _support(atoms: object) -> set[int]:
    return {int(j) for j in np.asarray(atoms) if j >= 0}


def stream_rate() -> float:
    """Bytes per second of a sum over 512 MiB."""
    x = jnp.ones(1 << 27, jnp.float32)
    return x.nbytes / _best(jax.jit(jnp.sum), x)


def gemm_rate() -> float:
    """float32 flops per second of a 2048-cubed matrix product at full precision."""
    x = jnp.ones((2048, 2048), jnp.float32)
    return 2 * 2048**3 / _best(jax.jit(lambda a: jnp.dot(a, a, precision=jax.lax.Precision.HIGHEST)), x)


def _best(call: Callable, x: jax.Array) -> float:
    call(x).block_until_ready()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        call(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def device_name() -> str:
    """What this ran on, such as "AMD EPYC, 2 cores" or the GPU's name."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {len(_cpus())} cores"


def _cpus() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def table(result: dict) -> str:
    """Markdown: wall median in ms, ratios to sfrjax and to the floor, supports that agree with float64."""
    lines = ["| workload | implementation | wall ms | min | CPU ms | x sfrjax | x floor | supports as float64 |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    own = {r["workload"]: r["wall_median_s"] for r in result["rows"] if r["impl"] == "sfrjax"}
    for r in result["rows"]:
        wall = r["wall_median_s"]
        lines.append(
            f"| {r['workload']} | {r['impl']} | {wall * 1e3:.1f} | {r['wall_min_s'] * 1e3:.1f} "
            f"| {r['cpu_median_s'] * 1e3:.0f} "
            f"| {wall / own[r['workload']]:.2f} | {wall / result['floors'][r['workload']]:.1f} "
            f"| {r['support_agreement']:.2%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
