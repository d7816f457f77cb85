"""Two linear layers that learn, and between them something that does not: from degraded tokens to clean ones in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.models.llm import LanguageModel
from alignlab.restoration.adapters import layer_in, linear, spread
from alignlab.training import Recipe, descend, rate

Middle = Callable[[Tensor], Tensor]

SHARE = 0.1  # of the size of what a block reads: what it adds to that, in the beginning
BENT = (0.03, 0.1, 0.3)  # sizes of what GELU may read in the beginning: from hardly bent to bent a good deal
RIDGE = 3e-3  # of a feature's variance, added to it in least squares
BATCH = 32  # pictures at once where nothing learns


class Between(nn.Module):
    """Tokens `[B, T, D]` -> `W_in`, with bias -> `middle` in width `D_llm` -> `W_out`, with bias -> `[B, T, D]`.

    `middle` (a frozen block, or GELU, which makes an MLP of the whole) holds nothing that learns and is no part of the
    state. It reads `scale` times what the layer in gives, and the layer out reads what it writes divided by that: the same
    two linear layers as without, but of weights that are alike in size for all that may stand between.
    """

    def __init__(self, middle: Middle, into: nn.Linear, out: nn.Linear, scale: float) -> None:
        super().__init__()
        self.__dict__["middle"] = middle
        self.into, self.out, self.scale = into, out, scale

    def features(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, T, D]` -> what the layer out reads, `[B, T, D_llm]` float32."""
        found: Tensor = self.__dict__["middle"](self.into(tokens) * self.scale)
        return found.float() / self.scale

    def forward(self, tokens: Tensor) -> Tensor:
        made: Tensor = self.out(self.features(tokens))
        return made


@torch.no_grad()
def begin(
    middle: Middle, low: Tensor, high: Tensor, llm: LanguageModel, seed: int, scale: float | None = None
) -> Between:
    """The two layers as they begin, for pictures' tokens such as `low` and `high` `[N, T, D]`.

    The layer in is drawn from `seed`, every direction of the tokens coming in with the same variance; the layer out is the
    least squares solution for it. Without a `scale`, the one at which what a block adds to what it reads is `SHARE` as
    large as that: blocks differ by orders of magnitude in what they are used to, a random one most of all.
    """
    generator = torch.Generator().manual_seed(seed)
    into = layer_in(torch.cat([low, high]), llm, generator)
    for parameter in into.parameters():
        parameter.div_(spread(llm))
    model = Between(middle, into, linear(llm.width, low.shape[2], 0.0, generator), 1.0).to(low.device)
    model.scale = _scale(model, low[:BATCH]) if scale is None else scale
    solve(model, low, high)
    return model


@torch.no_grad()
def _scale(model: Between, low: Tensor) -> float:
    """Found in two steps: with a norm before its parts, what a block adds hardly depends on the size of what it reads."""
    read = model.into(low)
    for _ in range(2):
        added = (model.features(low) - read) * model.scale
        model.scale = float(added.square().mean().sqrt() / read.square().mean().sqrt()) / SHARE or 1.0
    return model.scale


@torch.no_grad()
def solve(model: Between, low: Tensor, high: Tensor) -> None:
    """Make the layer out the best one for the layer in, by ridge regression on tokens `[N, T, D]`."""
    weight, bias = ridge((model.features(x) for x in low.split(BATCH)), high.split(BATCH))
    model.out.weight.copy_(weight)
    model.out.bias.copy_(bias)


@torch.no_grad()
def error(model: nn.Module, low: Tensor, high: Tensor) -> float:
    """The mean squared error of making `high` of `low`, tokens `[N, T, D]`."""
    parts = [F.mse_loss(model(x), y, reduction="sum") for x, y in zip(low.split(BATCH), high.split(BATCH), strict=True)]
    return float(torch.stack(parts).sum()) / high.numel()


def best_linear(low: Tensor, high: Tensor) -> nn.Linear:
    """The one linear layer that makes `high` of `low`, tokens `[N, T, D]`, with the least squared error."""
    layer = linear(low.shape[2], high.shape[2], 0.0, torch.Generator()).to(low.device)
    with torch.no_grad():
        weight, bias = ridge(low.split(BATCH), high.split(BATCH))
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def ridge(features: Iterable[Tensor], targets: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Weight `[D, F]` and bias `[D]` that make targets `[b, T, D]` of features `[b, T, F]`, both read once, part by part.

    Features are centred and scaled by those of the first part, so that float32 is enough for the products of a part, and
    `RIDGE` is added to every variance: a language model's hidden states have directions a thousand times larger than others.
    """
    rows, mean, size = 0, None, None
    square = cross = left = right = torch.zeros((), dtype=torch.float64)
    for x, y in zip(features, targets, strict=True):
        x, y = x.float().flatten(0, 1), y.float().flatten(0, 1)  # [b T, F], [b T, D]
        if mean is None or size is None:
            mean = x.mean(0)
            size = (x - mean).square().mean(0).sqrt()
            size = size.clamp(min=1e-6 * float(size.max()) or 1.0)
        x = (x - mean) / size
        square, cross = square + (x.T @ x).double().cpu(), cross + (x.T @ y).double().cpu()  # [F, F], [F, D]
        left, right, rows = left + x.sum(0).double().cpu(), right + y.sum(0).double().cpu(), rows + len(x)
    if mean is None or size is None:
        raise ValueError("there are no pictures to learn from; give one at least")
    left, right = left / rows, right / rows
    covariance = square / rows - left[:, None] * left + RIDGE * torch.eye(len(left), dtype=torch.float64)
    found = torch.linalg.solve(covariance, cross / rows - left[:, None] * right)  # [F, D], of features as scaled
    weight = found.T / size.double().cpu()  # [D, F]
    bias = right - found.T @ left - weight @ mean.double().cpu()
    return weight.float(), bias.float()


def learn(model: Between, low: Tensor, high: Tensor, recipe: Recipe) -> None:
    """Descend on the mean squared error of tokens `[N, T, D]`; the recipe's seed says in which order pictures come.

    Raises RuntimeError where the loss is not finite.
    """
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.empty(0, dtype=torch.long)
    for step in range(recipe.steps):
        while len(order) < recipe.batch:
            order = torch.cat([order, torch.randperm(len(low), generator=generator)])
        now, order = order[: recipe.batch].to(low.device), order[recipe.batch :]
        for group in optimiser.param_groups:
            group["lr"] = rate(step, recipe)
        try:
            descend(optimiser, F.mse_loss(model(low[now]), high[now]), recipe.clip)
        except FloatingPointError as error:
            raise RuntimeError(
                f"the loss is not finite at step {step + 1}; give a lower --lr, and another --out"
            ) from error
