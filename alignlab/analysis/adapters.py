"""What LM4LV's two linear layers do to a token between them: A = W_out W_in (App. B.1, Table 6 and Fig. 11 of the paper).

Were the language model left out, a token h would become A h + b. The paper finds A close to a scaled identity and takes it
as a sign that the language model does the work. Each of its two measures has a flaw (`simulate` shows both):

* L, the mean squared entry of A - alpha I at the best alpha, grows with the square of A's scale: L(cA) = c^2 L(A). The
  5.26e-4 of the paper's adapters against the 1.00 of standard Gaussian numbers says how small their entries are, too.
  L divided by the mean squared entry of A has no scale: it is 1 - cos^2, the angle being A's to I, 0 for alpha I and
  1 - 1/n^2 on average for Gaussian numbers.
* D, the mean over i != j of |A_ii / A_ij|, has no expectation for random matrices: the ratio of two Gaussian numbers is
  Cauchy's, whose absolute value has none. Its sample mean grows without end, as 2/pi times the logarithm of the sample's
  size, and differs from draw to draw; the paper's 12.52 is one such mean, of 10^6 draws. The median of the ratios exists:
  1 for independent entries of one spread, and above it as far as the diagonal stands out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from alignlab import trained
from alignlab.restoration import design
from alignlab.restoration.coordinates import POSITION
from alignlab.trained import ADAPTERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPREAD = (0.05, 0.95)  # quantiles over random draws
SHOWN = 512  # rows and columns of a heatmap; of a larger matrix every k-th
WHITENING = ("mean", "components", "scale")
GREY = "#6e6e6e"


@dataclass(frozen=True)
class Affine:
    """h -> A h + b for tokens h `[D]`: `matrix` `[D, D]`, `bias` `[D]`, float64."""

    matrix: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Measures:
    """How near an n x n matrix is to alpha I.

    `alpha` is the best one, tr A / n. `distance` is the paper's L, `ratio` the same over the mean squared entry of A (nan for
    a matrix of zeros). `diagonal_mean` is the paper's D, inf where an entry off the diagonal is 0, `diagonal_median` the
    median of the same ratios. `rank_entropy` is exp of the entropy of the singular values' shares (Roy and Vetterli 2007),
    `rank_participation` (sum s^2)^2 / sum s^4; both are n for alpha I. `singular_median` and `singular_largest` are singular
    values.
    """

    alpha: float
    distance: float
    ratio: float
    diagonal_mean: float
    diagonal_median: float
    rank_entropy: float
    rank_participation: float
    singular_median: float
    singular_largest: float


@dataclass(frozen=True)
class Adapters:
    """The layers of a checkpoint: `weights` are (W_out, W_in), or one layer that is A itself; `whitening` is None, or the
    mean `[D]`, components `[D, D]` and scale `[D]` of the coordinates that they were learnt in.
    """

    name: str
    checkpoint: str
    frozen: dict[str, str]
    plan: design.Design
    weights: tuple[Tensor, ...]
    learnt: Affine
    whitening: tuple[Tensor, Tensor, Tensor] | None

    @property
    def width(self) -> int:
        return len(self.learnt.bias)

    def coordinates(self) -> dict[str, Affine]:
        """A and b by the coordinates of the token: "raw", the encoder's own, and "whitened" where they were learnt there."""
        if self.whitening is None:
            return {"raw": self.learnt}
        return {"raw": unwhitened(self.learnt, *self.whitening), "whitened": self.learnt}


def product(
    weight_in: Tensor, weight_out: Tensor, bias_in: Tensor | None = None, bias_out: Tensor | None = None
) -> Affine:
    """W_in `[L, D]` and W_out `[D, L]` with their biases -> A = W_out W_in `[D, D]`, b = W_out b_in + b_out `[D]`.

    Raises ValueError for shapes that do not compose to a square, and for numbers that are not finite.
    """
    d = weight_in.shape[1] if weight_in.ndim == 2 else 0
    if weight_in.ndim != 2 or weight_out.shape != (d, weight_in.shape[0]):
        raise ValueError(
            f"the adapters do not compose: the layer in must be [L, D] and the layer out [D, L], got "
            f"{list(weight_in.shape)} and {list(weight_out.shape)}"
        )
    into, out = weight_in.double(), weight_out.double()
    bias = torch.zeros(d, dtype=torch.float64)
    for what, given, length in (("in", bias_in, len(into)), ("out", bias_out, d)):
        if given is not None and given.shape != (length,):
            raise ValueError(f"the bias of the layer {what} must be [{length}], got {list(given.shape)}")
    if bias_in is not None:
        bias = bias + out @ bias_in.double()
    if bias_out is not None:
        bias = bias + bias_out.double()
    found = Affine(out @ into, bias)  # [D, L] [L, D] -> [D, D]
    if not bool(torch.isfinite(found.matrix).all() and torch.isfinite(found.bias).all()):
        raise ValueError("the adapters hold numbers that are not finite")
    return found


def unwhitened(learnt: Affine, mean: Tensor, components: Tensor, scale: Tensor) -> Affine:
    """What a map of z = ((h - mean) @ components) * scale does to h, the encoder's own token.

    The whitening is affine, so that it is one more pair of linear layers around the adapters: A becomes
    C S^-1 A S C^T. That has A's trace and eigenvalues, and so the same best alpha; its entries and singular values differ.
    """
    mean, components, scale = (x.double() for x in (mean, components, scale))
    into, out = (components * scale).T, components / scale  # h - mean -> z, z -> h - mean: [D, D]
    matrix = out @ learnt.matrix @ into
    return Affine(matrix, out @ learnt.bias + mean - matrix @ mean)


def read(name: str) -> Adapters:
    """The adapters of a folder that `alignlab restore train` wrote, or of a shipped one's name; no model is loaded.

    Raises ValueError for a folder without them, for an expert that has no adapters, and for layers that do not compose.
    """
    folder = design.find(name)
    plan, described, state = design.read(folder)
    coordinates = {k.removeprefix(design.COORDINATES): v for k, v in state.items() if k.startswith(design.COORDINATES)}
    if plan.how in ("mlp", "transformer"):
        raise ValueError(
            f"{folder / ADAPTERS} is a {plan.how}, which has no pair of linear layers to multiply; give one of lm4lv, "
            "vit-llm or linear"
        )
    names = ("layer",) if plan.how == "linear" else ("adapter_out", "adapter_in")
    for key in (f"{one}.{part}" for one in names for part in ("weight", "bias")):
        if key not in state:
            raise ValueError(f"{folder / ADAPTERS} lacks {key}; it is damaged")
    weights = tuple(state[f"{one}.weight"].double() for one in names)
    biases = [state[f"{one}.bias"] for one in names]
    try:
        if plan.how == "linear":
            learnt = product(torch.eye(weights[0].shape[-1], dtype=torch.float64), weights[0], None, biases[0])
        else:
            learnt = product(weights[1], weights[0], biases[1], biases[0])
        whitening = _whitening(coordinates, len(learnt.bias)) if plan.features == "whitened" else None
    except ValueError as error:
        raise ValueError(f"{folder / ADAPTERS}: {error}") from error
    return Adapters(
        folder.resolve().name, trained.checkpoint(folder), described["frozen"], plan, weights, learnt, whitening
    )


def _whitening(state: dict[str, Tensor], d: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = {"mean": (d,), "components": (d, d), "scale": (d,)}
    for what, shape in shapes.items():
        if what not in state or tuple(state[what].shape) != shape:
            got = list(state[what].shape) if what in state else "none"
            raise ValueError(f"the whitening's {what} must be {list(shape)}, got {got}")
    for what in shapes:
        if not bool(state[what].isfinite().all()):
            raise ValueError(f"the whitening's {what} holds nan or inf")
    mean, components, scale = (state[what] for what in WHITENING)
    if bool((scale <= 0).any()):
        raise ValueError("the whitening's scale must be above 0")
    return mean, components, scale


# --- measures ---


def distance(matrix: Tensor) -> tuple[float, float, float]:
    """`[n, n]` -> the best alpha, the paper's L (see the module), and L over the mean squared entry.

    Raises ValueError for a matrix that is not square or smaller than 2 x 2.
    """
    a = _square(matrix)
    alpha = float(a.diagonal().mean())
    apart = a.clone()
    apart.diagonal().sub_(alpha)
    l, level = float(apart.square().mean()), float(a.square().mean())
    return alpha, l, l / level if level else math.nan


def diagonal_ratios(matrix: Tensor) -> np.ndarray:
    """|A_ii / A_ij| for all i != j of `[n, n]`, `[n (n - 1)]`: inf over a 0, and 1 for 0 over 0. Errors as `distance`."""
    a = _square(matrix).abs()
    ratios = a.diagonal()[:, None] / a  # [n, n]
    off = ratios[~torch.eye(len(a), dtype=torch.bool)]
    return off.nan_to_num(nan=1.0, posinf=math.inf).numpy()


def measures(matrix: Tensor, singular: Tensor | None = None) -> Measures:
    """All of `Measures`; `singular` are the matrix's singular values where they are at hand. Errors as `distance`."""
    alpha, l, ratio = distance(matrix)
    ratios = diagonal_ratios(matrix)
    s = (torch.linalg.svdvals(_square(matrix)) if singular is None else singular).double()
    share = s / s.sum()
    power = s.square()
    return Measures(
        alpha=alpha,
        distance=l,
        ratio=ratio,
        diagonal_mean=float(ratios.mean()),
        diagonal_median=float(np.median(ratios)),
        rank_entropy=float(torch.special.entr(share).sum().exp()),
        rank_participation=float(power.sum().square() / power.square().sum()),
        singular_median=float(s.median()),
        singular_largest=float(s.max()),
    )


def _square(matrix: Tensor) -> Tensor:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"expected a square matrix of 2 x 2 or more, got {list(matrix.shape)}")
    return matrix.double()


@dataclass(frozen=True)
class Spread:
    """Random layers of the same shapes and spread, in one kind of coordinates: `each` measure's median, 5% and 95% over the
    draws, and the same of the singular values `[3, D]`, largest first.
    """

    draws: int
    each: dict[str, tuple[float, float, float]]
    singular: np.ndarray


def random_like(adapters: Adapters, draws: int = 50, seed: int = 0) -> dict[str, Spread]:
    """What layers that learnt nothing give: Gaussian weights of the shapes and the root mean squares of the trained ones,
    multiplied and brought to the same coordinates. By coordinates, as `Adapters.coordinates`.
    """
    if draws < 1:
        raise ValueError(f"draws must be 1 or more, got {draws}")
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[tuple[Measures, np.ndarray]]] = {}
    for _ in range(draws):
        matrix = torch.eye(adapters.width, dtype=torch.float64)
        for weight in reversed(adapters.weights):
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            matrix = drawn * weight.square().mean().sqrt() @ matrix
        drawn_as = replace(adapters, weights=(), learnt=Affine(matrix, matrix[0] * 0))
        for where, affine in drawn_as.coordinates().items():
            s = torch.linalg.svdvals(affine.matrix)
            found.setdefault(where, []).append((measures(affine.matrix, s), s.numpy()))
    at = (0.5, *SPREAD)
    return {
        where: Spread(
            draws,
            {
                one.name: _three(np.quantile([getattr(m, one.name) for m, _ in drawn_ones], at))
                for one in fields(Measures)
            },
            np.quantile(np.stack([s for _, s in drawn_ones]), at, axis=0),
        )
        for where, drawn_ones in found.items()
    }


def _three(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def analyse(adapters: Adapters, draws: int = 50, seed: int = 0) -> dict[str, Any]:
    """Everything of one checkpoint as plain values: by coordinates the measures of A, those of random layers, the bias and
    the singular values; "identity" is the measures of I. inf and nan are None.
    """
    random = random_like(adapters, draws, seed)
    found = {}
    for where, affine in adapters.coordinates().items():
        s = torch.linalg.svdvals(affine.matrix)
        spread = random[where]
        found[where] = {
            "trained": plain(asdict(measures(affine.matrix, s))),
            "random": {
                name: plain(dict(zip(("median", "low", "high"), x, strict=True))) for name, x in spread.each.items()
            },
            "singular_values": s.tolist(),
            "random_singular_values": dict(zip(("median", "low", "high"), spread.singular.tolist(), strict=True)),
            "bias": {"rms": float(affine.bias.square().mean().sqrt()), "largest": float(affine.bias.abs().max())},
        }
    return {
        "checkpoint": adapters.name,
        "trained": adapters.checkpoint,
        "frozen": adapters.frozen,
        "design": adapters.plan.plain(),
        "width": adapters.width,
        "llm_width": adapters.weights[0].shape[1] if len(adapters.weights) > 1 else None,
        "coordinates": found,
        "identity": plain(asdict(measures(torch.eye(adapters.width)))),
        "draws": draws,
        "position_code": adapters.plan.encoder.endswith(POSITION),
    }


def plain(values: dict[str, float]) -> dict[str, float | None]:
    """As JSON, which has no inf and no nan."""
    return {key: x if math.isfinite(x) else None for key, x in values.items()}


# --- what is wrong with the paper's measures ---


def simulate(
    sizes: Sequence[int] = (32, 100, 320, 1000),
    scales: Sequence[float] = (0.01, 0.1, 1.0, 10.0),
    draws: int = 25,
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> dict[str, list[dict[str, float]]]:
    """The paper's L and D on matrices of independent Gaussian numbers, which are as far from alpha I as any.

    "scale": one n x n matrix (n the first size) times each of `scales`: its L goes with the square of the scale, the ratio
    stays. "sample": n x n matrices of growing n, `draws` of each: the median, 5% and 95% of D over the draws, of the median
    ratio, and of the largest share that one single entry has in the sum that D is the mean of. "expected_growth" is
    2/pi ln(n (n - 1)): what D's typical value grows by. Raises ValueError for sizes below 2 and no draws.
    """
    if not sizes or min(sizes) < 2 or draws < 1:
        raise ValueError(f"simulate needs sizes of 2 or more and a draw at least, got {list(sizes)} and {draws}")
    generator = torch.Generator().manual_seed(seed)

    def gaussian(n: int) -> Tensor:
        return torch.randn(n, n, generator=generator, dtype=torch.float64)

    first = gaussian(sizes[0])
    scaled = []
    for c in scales:
        _, l, ratio = distance(c * first)
        scaled.append({"scale": c, "distance": l, "ratio": ratio})
    sampled: list[dict[str, float]] = []
    for done, n in enumerate(sizes, 1):
        each = [diagonal_ratios(gaussian(n)) for _ in range(draws)]
        row: dict[str, float] = {"n": n, "entries": n * (n - 1), "draws": draws}
        for name, values in (
            ("diagonal_mean", [r.mean() for r in each]),
            ("diagonal_median", [np.median(r) for r in each]),
            ("largest_share", [r.max() / r.sum() for r in each]),
        ):
            middle, low, high = _three(np.quantile(values, (0.5, *SPREAD)))
            row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
        row["expected_growth"] = 2 / math.pi * math.log(n * (n - 1))
        sampled.append(row)
        tick(done)
    return {"scale": scaled, "sample": sampled}


# --- pictures ---


def heatmaps(adapters: Adapters) -> Figure:
    """A and |A| in each kind of coordinates, yellow large and blue small as Fig. 11; of a large matrix every k-th row and
    column.
    """
    from matplotlib.figure import Figure

    found = adapters.coordinates()
    figure = Figure(figsize=(8.6, 4.0 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), 2, squeeze=False)
    for row, (where, affine) in zip(grid, found.items(), strict=True):
        step = -(-adapters.width // SHOWN)
        a = affine.matrix[::step, ::step].numpy()
        # A few entries are far larger than the others; without a limit nothing but them would be seen.
        largest = float(np.quantile(np.abs(affine.matrix.numpy()), 0.999)) or 1.0
        for axes, picture, low, title in zip(row, (a, np.abs(a)), (-largest, 0.0), ("A", "|A|"), strict=True):
            image = axes.imshow(picture, cmap="viridis", vmin=low, vmax=largest, interpolation="nearest")
            axes.set_title(f"{title}, {where} coordinates", fontsize=9)
            axes.tick_params(labelsize=7)
            figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    every = f", one row and column in {step}" if step > 1 else ""
    figure.suptitle(f"{adapters.name}: A = W_out W_in, {adapters.width} x {adapters.width}{every}", fontsize=10)
    return figure


def spectra(analysed: dict[str, Any]) -> Figure:
    """The singular values of A in each kind of coordinates, beside those of random layers (median, 5% to 95%) and alpha."""
    from matplotlib.figure import Figure

    found = analysed["coordinates"]
    figure = Figure(figsize=(4.6 * len(found), 3.4), layout="constrained")
    for axes, (where, one) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        s, random = one["singular_values"], one["random_singular_values"]
        at = range(1, len(s) + 1)
        axes.fill_between(at, random["low"], random["high"], color=GREY, alpha=0.3, linewidth=0)
        axes.plot(at, random["median"], color=GREY, linewidth=1.2, label="random layers")
        axes.plot(at, s, color="#1f6fb4", linewidth=1.8, label="trained")
        axes.axhline(abs(one["trained"]["alpha"]), color="#d1660f", linestyle="--", linewidth=1.2, label="|alpha| I")
        axes.set_yscale("log")
        axes.set_xlabel("number")
        axes.set_ylabel("singular value")
        axes.set_title(f"{where} coordinates", fontsize=9)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"{analysed['checkpoint']}: singular values of A", fontsize=10)
    return figure
