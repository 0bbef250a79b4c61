"""Curves and histograms as the geometry of small SVG pictures, which the page's template draws."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sfrjax.metrics import Curve

WIDTH, HEIGHT = 360, 270
LEFT, RIGHT, TOP, BOTTOM = 54, 350, 10, 228  # of the plotting area, in units of the picture


class Tick(NamedTuple):
    """at: position on its axis, in units of the picture."""

    at: float
    text: str


class Line(NamedTuple):
    """kind: class in the style sheet; path: SVG path data."""

    kind: str
    path: str


class Bar(NamedTuple):
    """A rectangle that stands on the x axis."""

    kind: str
    x: float
    width: float
    y: float
    height: float
    text: str


class Plot(NamedTuple):
    """legend: (kind, text) of each series; marker: a vertical line."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    legend: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    marker: Tick | None = None


def curves(title: str, y_label: str, series: Sequence[tuple[str, str, Curve]], *, limit: float = 1.0) -> Plot:
    """Curves over the false-positive rate, 0 to `limit`; series are (kind, text, curve), those without a vertex left
    out."""
    shown = [(kind, text, curve) for kind, text, curve in series if curve.fpr.size]
    lines = tuple(
        Line(kind, "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in _places(curve, limit))) for kind, _, curve in shown
    )
    return Plot(
        title,
        "false-positive rate",
        y_label,
        _ticks(0, limit, LEFT, RIGHT),
        _ticks(0, 1, BOTTOM, TOP),
        tuple((kind, text) for kind, text, _ in shown),
        lines,
    )


def histogram(
    title: str, series: Sequence[tuple[str, str, NDArray[np.floating]]], threshold: float | None, *, bins: int = 24
) -> Plot:
    """Image scores, as shares of each series, so that series of different lengths compare; series are (kind, text,
    scores [n]), empty ones left out."""
    shown = [(kind, text, np.asarray(scores, np.float64)) for kind, text, scores in series if len(scores)]
    everything = np.concatenate([*(scores for *_, scores in shown), [] if threshold is None else [threshold]])
    low, high = float(everything.min()), float(everything.max())
    margin = 0.02 * (high - low) or max(abs(high), 1) * 0.05
    low, high = low - margin, high + margin
    edges = np.linspace(low, high, bins + 1)
    shares = [np.histogram(scores, edges)[0] / scores.size for *_, scores in shown]
    top = 1.05 * max(float(share.max()) for share in shares)
    places = _scale(edges, low, high, LEFT, RIGHT)
    bars = []
    for (kind, text, scores), share in zip(shown, shares, strict=True):
        for i in np.flatnonzero(share):
            y = float(_scale(share[i], 0, top, BOTTOM, TOP))
            count = round(share[i] * scores.size)
            about = f"{text}: {count} of {scores.size} between {edges[i]:.4g} and {edges[i + 1]:.4g}"
            bars.append(Bar(kind, places[i] + 0.5, places[i + 1] - places[i] - 1, y, BOTTOM - y, about))
    marker = None
    if threshold is not None:
        marker = Tick(float(_scale(threshold, low, high, LEFT, RIGHT)), f"threshold {threshold:.4g}")
    return Plot(
        title,
        "image score",
        "share of the images",
        _ticks(low, high, LEFT, RIGHT),
        _ticks(0, top, BOTTOM, TOP),
        tuple((kind, f"{text} ({scores.size})") for kind, text, scores in shown),
        bars=tuple(bars),
        marker=marker,
    )


def _places(curve: Curve, limit: float) -> zip:
    return zip(_scale(curve.fpr, 0, limit, LEFT, RIGHT), _scale(curve.rate, 0, 1, BOTTOM, TOP), strict=True)


def _scale(values: NDArray | float, low: float, high: float, start: float, end: float) -> NDArray[np.float64]:
    return start + (np.asarray(values) - low) / (high - low) * (end - start)


def _ticks(low: float, high: float, start: float, end: float) -> tuple[Tick, ...]:
    values = [value for value in MaxNLocator(5).tick_values(low, high) if low <= value <= high * (1 + 1e-9)]
    return tuple(Tick(float(_scale(value, low, high, start, end)), f"{value:.6g}") for value in values)
