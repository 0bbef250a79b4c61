"""The section of docs/results.md about time per image, from the JSON of `latency_sref.py`."""

from collections.abc import Iterator

from page_tables import table

from sfrjax.settings import MODES


def section(latency: dict) -> Iterator[str]:
    """Markdown: the aims first, then stages, first calls, and all rows."""
    yield "## Time per image over s_ref and N (Fig. 5b)\n"
    rounds = ", ".join(f"{count} ({mode})" for mode, count in latency["rounds"].items())
    yield (
        f"`{latency['command'].replace('FILE', 'benchmarks/results/latency-sref-cpu.json')}`; {latency['device']}; "
        f"{latency['backbone']}, {latency['images']}, {latency['nominal_images']} nominal images; medians of {rounds} "
        "interleaved rounds, ms per image. The whole image, file to map, is the sum of its stages' medians.\n"
    )
    yield from _flatness(latency)
    yield "![Reconstruction time over s_ref and N](../benchmarks/results/latency-sref-cpu.png)\n"
    fixed = [[str(s["batch"]), *(f"{1000 * s[k]:.2f}" for k in _FIXED)] for s in latency["stages"]]
    yield "The stages that neither s_ref nor N changes; a network's includes preprocessing:\n"
    headers = "batch|decode|preprocess|network to the reference level|network to the scoring levels|map, resized"
    yield table(headers, fixed)
    yield "The first call of a reconstruction, which compiles, in s; the process's peak over all rows of its block:\n"
    first = [
        [
            *(str(row[key]) for key in ("mode", "batch", "sampling", "s_ref")),
            f"{row['first_call_s']:.1f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
        ]
        for row in latency["s_ref"]
        if "first_call_s" in row
    ]
    yield table("mode|batch|sampling|s_ref|first call, s|peak, MB", first)
    stages = ("sampling_s", "solve_s", "residual_s", "total_s", "total_p95_s", "image_s")
    for part, title in (
        ("s_ref", "Over s_ref, s = s_ref / 2"),
        ("nominal", "Over N, random features of Lite0's shapes"),
    ):
        yield f"{title}:\n"
        rows = []
        for row in latency[part]:
            name = [str(row[key]) for key in ("mode", "batch", "sampling", "nominal_images", "s_ref", "s")]
            rows.append([*name, *(f"{1000 * row[stage]:.2f}" if stage in row else "-" for stage in stages)])
        headers = "mode|batch|sampling|N|s_ref|s|sampling|solve|residual|reconstruction|its p95|file to map"
        yield table(headers, rows)


_FIXED = ("decode_s", "preprocess_s", "backbone_s", "shallower_s", "map_s")


def _flatness(latency: dict) -> Iterator[str]:
    """The two aims: flat from s_ref = 10 to 40, and sampling never slower than none."""
    rows, missed = [], []
    for mode in MODES:
        for batch in dict.fromkeys(row["batch"] for row in latency["s_ref"]):
            found = {
                (r["sampling"], r["s_ref"]): r for r in latency["s_ref"] if (r["mode"], r["batch"]) == (mode, batch)
            }
            if ("subspace", 10) not in found or ("subspace", 40) not in found:
                continue
            low, high = found["subspace", 10], found["subspace", 40]
            flat = [high[k] / low[k] for k in ("image_s", "total_s")]
            against = [
                max(found["subspace", n][k] / found["none", n][k] for s, n in found if s == "subspace")
                for k in ("image_s", "total_s")
            ]
            grown = [
                f"{1000 * low[k]:.1f} - {1000 * high[k]:.1f}" if k in low else "-"
                for k in ("sampling_s", "solve_s", "residual_s")
            ]
            ratios = [[f"{ratio:.2f}" for ratio in pair] for pair in (flat, against)]
            rows.append([mode, str(batch), *ratios[0], *grown, *ratios[1]])
            if flat[0] > 1.1:
                missed.append(f"{mode}, batch {batch}: {flat[0]:.2f} over s_ref")
            if against[0] > 1:
                missed.append(f"{mode}, batch {batch}: {against[0]:.2f} against no sampling")
    yield (
        "Two aims: the whole image takes at most 1.1 times as long at s_ref = 40 as at 10 (subspace-based sampling), "
        f"and with sampling never longer than without. Missed: {'; '.join(missed) or 'none'}. With s_ref the atoms of "
        "a reconstruction grow, and with them its steps; one image alone also reads more rows of the bank. And only "
        "subspace-based sampling needs the network as far as the reference level. By stages, at s_ref = 10 and 40 in "
        "ms, and the largest ratio of subspace-based sampling over none at any s_ref:\n"
    )
    yield table(
        "mode|batch|40 / 10, image|40 / 10, reconstruction|sampling|solve|residual|with / without, image|with / "
        "without, reconstruction",
        rows,
    )
