"""What a run is made of: the method's settings, and the paper's presets (arXiv 2309.13904, section IV-A)."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from sfrjax.errors import SfrjaxError

Level = int | str
LEVELS: tuple[Level, ...] = (1, 2, 3, 4, "last")
BATCH_SIZE = 8  # images per step, unless said otherwise
METHODS = ("sfr", "spade", "padim", "patchcore")
SAMPLINGS = ("subspace", "random", "none")
MODES = ("full", "pixel")
DTYPES = ("float32", "bfloat16")  # of a network's arithmetic
ATOM_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """Settings of SFR (and, as far as they apply, of its rivals); immutable, hashable, checked when made.

    Those in `BANK_FIELDS` decide what a memory bank holds; the others only how it is used.

    Attributes:
        method: "sfr", or a rival: "spade", "padim", "patchcore", which read backbone, levels, dtype, image_size, sigma
            and seed only.
        backbone: name of the feature network.
        levels: scoring levels, a subset of 1, 2, 3, 4, "last"; their maps are summed.
        reference: level at which subspace-based sampling runs (Eq. 6, 7); unused by the other samplings.
        sampling: "subspace" (per test image), "random" (s_ref nominal images drawn once from `seed`) or "none".
        mode: "full" (one vector per level, the paper's) or "pixel" (every position its own problem).
        s_ref: number of nominal images that sampling keeps.
        s: number of atoms in a reconstruction.
        eps: the pursuit stops when the L2 norm of the residual is at most this (Algorithm 1).
        neighbourhood: side in positions of the square over which features are averaged before anything else;
            1 leaves them as they are (the paper's).
        dtype: of the network's arithmetic, "float32" or "bfloat16"; features are float32 in either case.
        atoms_dtype: in which the memory bank keeps features, "float32", "float16" or "bfloat16"; arithmetic on them
            is float32 in every case.
        image_size: side in pixels to which every image is squashed.
        sigma: standard deviation in pixels of the Gaussian that smooths an anomaly map.
        quantile: share of nominal images that the threshold should pass (scoring.threshold_from_nominal).
        seed: of the random sampling.

    Raises:
        SfrjaxError: a value is out of range, or s > s_ref.
    """

    method: str = "sfr"
    backbone: str = "efficientnet_lite0"
    levels: tuple[Level, ...] = (2, 3)
    reference: Level = 4
    sampling: str = "subspace"
    mode: str = "full"
    s_ref: int = 40
    s: int = 17
    eps: float = 1e-6
    neighbourhood: int = 1
    dtype: str = "float32"
    atoms_dtype: str = "float32"
    image_size: int = 256
    sigma: float = 4.0
    quantile: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))  # hashable, whatever sequence was given
        if not self.levels or len(set(self.levels)) != len(self.levels) or not set(self.levels) <= set(LEVELS):
            raise SfrjaxError(f"--levels {_spell(self.levels)}: give one or more different levels of {_spell(LEVELS)}")
        if self.reference not in LEVELS:
            raise SfrjaxError(f"--reference {self.reference}: give one of {_spell(LEVELS)}")
        _one_of("--method", self.method, METHODS)
        _one_of("--sampling", self.sampling, SAMPLINGS)
        _one_of("--mode", self.mode, MODES)
        _one_of("--dtype", self.dtype, DTYPES)
        _one_of("--atoms-dtype", self.atoms_dtype, ATOM_DTYPES)
        if self.neighbourhood < 1 or self.neighbourhood % 2 == 0:
            raise SfrjaxError(f"--neighbourhood {self.neighbourhood}: give an odd number, 1 for none, 3 for 3 x 3")
        if self.s < 1:
            raise SfrjaxError(f"--s {self.s}: a reconstruction needs at least 1 atom")
        if self.sampling != "none" and self.s > self.s_ref:
            raise SfrjaxError(
                f"--s {self.s} is larger than --s-ref {self.s_ref}: a reconstruction cannot use more atoms than "
                "sampling keeps; lower --s, raise --s-ref, or use --sampling none"
            )
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise SfrjaxError(f"--eps {self.eps}: give a number >= 0")
        if not 0 < self.quantile <= 1:
            raise SfrjaxError(f"--quantile {self.quantile}: give a share of nominal images above 0 and at most 1")
        if self.seed < 0:
            raise SfrjaxError(f"--seed {self.seed}: give a whole number >= 0")
        if self.image_size < 32:
            raise SfrjaxError(f"image_size {self.image_size}: the networks need at least 32 pixels")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise SfrjaxError(f"sigma {self.sigma}: give a number > 0")

    @property
    def feature_levels(self) -> tuple[Level, ...]:
        """The levels to extract: those scored, then the one by which the method chooses nominal images, if it does."""
        extra: Level | None = None
        if self.method == "spade":
            extra = "last"
        elif self.method == "sfr" and self.sampling == "subspace":
            extra = self.reference
        return self.levels if extra is None or extra in self.levels else (*self.levels, extra)

    def check_bank_size(self, n_images: int, source: str) -> None:
        """Raise SfrjaxError for fewer nominal images than can differ from each other, or than sampling asks for."""
        if n_images < 2:
            raise SfrjaxError(f"one nominal image in {source}: at least 2 are needed, to see how good parts differ")
        if self.method == "sfr" and self.sampling != "none" and self.s_ref > n_images:
            raise SfrjaxError(
                f"--s-ref {self.s_ref} is larger than the {n_images} nominal images in {source}; "
                f"give --s-ref {n_images} or fewer (and --s no larger), --sampling none, or more nominal images"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` is its inverse."""
        return {**asdict(self), "levels": list(self.levels)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Settings":
        """Settings from `to_dict`'s form. Raises SfrjaxError for unknown, missing or mistyped fields."""
        expected = asdict(cls())
        if set(values) != set(expected):
            raise SfrjaxError(f"settings do not fit this version: {_spell(sorted(set(values) ^ set(expected)))}")
        for name, default in expected.items():
            value = values[name]
            kinds = {float: (int, float), tuple: (list, tuple)}.get(type(default), (type(default),))
            if name == "reference":
                kinds = (int, str)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise SfrjaxError(f"setting {name} cannot be {value!r}")
        return cls(**values)


# What a memory bank is made of: changing any of these means fitting anew.
BANK_FIELDS = ("method", "backbone", "levels", "mode", "neighbourhood", "dtype", "atoms_dtype", "image_size")

# The paper's settings per data set; a plain folder takes MVTec AD's.
PRESETS: dict[str, dict[str, Any]] = {
    "mvtec": {"levels": (2, 3), "reference": 4, "s_ref": 40, "s": 17},
    "btad": {"levels": (2, 3), "reference": 4, "s_ref": 36, "s": 11},
    "mtd": {"levels": (2, 3, 4), "reference": "last", "s_ref": 10, "s": 7},
}
PRESETS["folder"] = PRESETS["mvtec"]

# The scoring levels of the rivals' own papers, on any data set.
RIVAL_LEVELS: dict[str, tuple[Level, ...]] = {"spade": (1, 2, 3), "padim": (1, 2, 3), "patchcore": (2, 3)}


def preset(dataset: str, method: str = "sfr") -> dict[str, Any]:
    """A data set's preset, with the levels of the method's own paper."""
    return {**PRESETS[dataset], **({"levels": RIVAL_LEVELS[method]} if method in RIVAL_LEVELS else {})}


def parse_level(text: str) -> Level:
    """A level from its spelling on the command line: 1, 2, 3, 4 or last."""
    levels = {str(level): level for level in LEVELS}
    if text.strip() not in levels:
        raise SfrjaxError(f"level {text!r}: give one of {_spell(LEVELS)}")
    return levels[text.strip()]


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SfrjaxError(f"{option} {value}: give one of {_spell(choices)}")


def _spell(values: Any) -> str:
    return ", ".join(str(v) for v in values) or "(none)"
