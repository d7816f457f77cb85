"""Reads a vision network stage by stage: finds its stages or blocks, and pools what each gives as it passes by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class StageReader:
    """The layers of a network that is not one of ours, pooled.

    A transformer's layers are the embedding output and the residual stream after each block, without the final norm.
    A convolutional network's are the stem's output (what enters the first stage), each stage's, and the final
    features if more comes after the last stage. Where a layer is several maps or sequences (HRNet's resolutions,
    CrossViT's branches) their pooled vectors are put side by side.

    `run` takes pixels `[B, 3, S, S]` to the final features; `prefix` counts the tokens before the patches (class
    token, DeiT's distillation token, registers) where there are any, `has_class_token` says that the first of them is
    the class token. `pools` lists the ways to pool a layer, the default first: "cls" only where every layer has the
    token; `widths` the layers' widths, `width` that of the tokens that `tokens` gives. Raises ValueError for a network
    whose stages cannot be found.
    """

    def __init__(
        self, name: str, model: nn.Module, run: Callable[[Tensor], Any], size: int, prefix: int, has_class_token: bool
    ) -> None:
        self.name, self._run, self._prefix = name, run, prefix
        like = next(model.parameters())
        blank = torch.zeros(1, 3, size, size, device=like.device, dtype=like.dtype)
        self._stages = self._find(model, blank)
        seen: list[list[Tensor]] = []
        final = self._trace(blank, seen.append)
        in_all = all(x.ndim == 3 and self._patches_from(x) == prefix for layer in seen for x in layer)
        self.pools = ("cls", "mean") if has_class_token and in_all else ("mean",)
        self.is_spatial = all(x.ndim == 4 for x in final)
        self.width = self._tokens(final).shape[2]
        if self._adds(final, seen[-1]):
            seen.append(final)
        self.widths = tuple(self._pool(layer, "mean").shape[1] for layer in seen)

    def pooled(self, pixels: Tensor, pool: str | None) -> list[Tensor]:
        """Normalised pixels `[B, 3, S, S]` -> a vector an image and layer, L times `[B, D_l]` float32.

        Raises ValueError for a pool that the network does not have.
        """
        chosen = self.pools[0] if pool is None else pool
        if chosen not in self.pools:
            raise ValueError(f"pool must be one of {', '.join(self.pools)} for {self.name}, got {pool!r}")
        layers: list[Tensor] = []
        last: list[Tensor] = []

        def read(branches: list[Tensor]) -> None:
            last[:] = branches
            layers.append(self._pool(branches, chosen))  # at once: a later layer may overwrite its input in place

        final = self._trace(pixels, read)
        if self._adds(final, last):
            layers.append(self._pool(final, chosen))
        return layers

    def tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels `[B, 3, S, S]` -> the final features `[B, T, D]` float32, cells in raster order.

        Where they are several maps or sequences there is one token: the means of all, side by side.
        """
        return self._tokens(_branches(self._run(pixels), len(pixels)))

    def _tokens(self, final: list[Tensor]) -> Tensor:
        if len(final) == 1:
            return as_tokens(final[0]).float()
        return self._pool(final, "mean")[:, None]  # [B, D] -> [B, 1, D]

    @staticmethod
    def _adds(final: list[Tensor], last: list[Tensor]) -> bool:
        """Whether maps come after the last stage's; a transformer's final tokens are its last block's, normed."""
        same = len(final) == len(last) and all(x is y for x, y in zip(final, last, strict=True))
        return not same and all(x.ndim == 4 for x in final)

    def _pool(self, branches: list[Tensor], pool: str) -> Tensor:
        vectors = []
        for x in branches:
            tokens = as_tokens(x)
            if pool == "cls":
                vectors.append(tokens[:, 0].to(torch.float32, copy=True))  # [B, T, D] -> [B, D]
            else:
                vectors.append(tokens[:, self._patches_from(x) :].float().mean(1))  # [B, T, D] -> [B, D]
        return torch.cat(vectors, dim=1)

    def _patches_from(self, x: Tensor) -> int:
        """How many tokens of a layer stand for no patch. Some networks add theirs late, so a layer may have none."""
        if x.ndim != 3:
            return 0
        # Images are square, so patches are a square number. A class token under another name is one too many.
        return next((n for n in (self._prefix, 0, 1) if _is_square(x.shape[1] - n)), 0)

    def _find(self, model: nn.Module, blank: Tensor) -> list[nn.Module]:
        for stages in _candidates(model):
            calls = [0] * len(stages)

            def count(i: int, out: Any, calls: list[int] = calls) -> None:
                calls[i] += bool(_branches(out, 1))

            hooks = [
                stage.register_forward_hook(lambda module, inputs, out, i=i: count(i, out))
                for i, stage in enumerate(stages)
            ]
            try:
                self._run(blank)
            finally:
                for hook in hooks:
                    hook.remove()
            if all(n == 1 for n in calls):
                return stages
        raise ValueError(f"{self.name} ({type(model).__name__}) has no stages or blocks that alignlab can find")

    def _trace(self, pixels: Tensor, read: Callable[[list[Tensor]], None]) -> list[Tensor]:
        """Call `read` with what enters the first stage and what leaves each; return the final features."""
        batch = len(pixels)

        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            # The stream comes first; what follows it (a position code, a mask) is read only where that is no stream.
            given = _branches(inputs[0], batch) if inputs else []
            branches = given or _branches(inputs, batch)
            if branches and branches[0].shape != pixels.shape:  # else the first stage is the stem itself
                read(branches)

        hooks = [self._stages[0].register_forward_pre_hook(enter)]
        hooks += [
            stage.register_forward_hook(lambda module, inputs, out: read(_branches(out, batch)))
            for stage in self._stages
        ]
        try:
            return _branches(self._run(pixels), batch)
        finally:
            for hook in hooks:
                hook.remove()


def _branches(value: Any, batch: int) -> list[Tensor]:
    """The maps and sequences of a batch among what a module took or gave, of the most dimensions there.

    A stage may hand on more than its stream: sizes, masks, class tokens beside a map.
    """
    values = list(value) if isinstance(value, list | tuple) else [value]
    found = [x for x in values if isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2 and len(x) == batch]
    most = max((x.ndim for x in found), default=0)
    return [x for x in found if x.ndim == most]


def _is_square(n: int) -> bool:
    return n > 0 and math.isqrt(n) ** 2 == n


def as_tokens(x: Tensor) -> Tensor:
    """A batch's map, sequence or vectors as tokens `[B, T, D]`, the cells of a map in raster order."""
    if x.ndim == 2:
        return x[:, None]  # [B, D] -> [B, 1, D]
    if x.ndim == 3:
        return x
    if x.shape[1] == x.shape[2] != x.shape[3]:  # images are square, so two equal sides are height and width
        return x.flatten(1, 2)  # [B, h, w, D] -> [B, T, D]
    return x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, D, h, w] -> [B, T, D]


def _candidates(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Where networks keep their stages, the usual places first."""
    for attribute in ("blocks", "stages", "layers", "resblocks"):
        stages = getattr(model, attribute, None)
        if isinstance(stages, nn.Sequential | nn.ModuleList) and len(stages):
            yield [leaf for stage in stages for leaf in _flat(stage)]
    for prefix in ("layer", "s", "stage"):  # ResNets, RegNets, HRNets
        numbered = [getattr(model, f"{prefix}{i}") for i in range(1, 10) if hasattr(model, f"{prefix}{i}")]
        if len(numbered) >= 3:
            yield numbered
    modules = dict(model.named_modules())
    listed = [info["module"] for info in getattr(model, "feature_info", None) or [] if info.get("module")]
    if listed and all(name in modules for name in listed):  # timm's own list of where features are
        yield [leaf for name in dict.fromkeys(listed) for leaf in _flat(modules[name])]
    lists = [
        x for x in modules.values() if isinstance(x, nn.Sequential | nn.ModuleList) and len({type(y) for y in x}) == 1
    ]
    yield from ([*x] for x in sorted(lists, key=len, reverse=True)[:1])  # the longest run of modules of one kind


def _flat(stage: nn.Module) -> list[nn.Module]:
    """The modules that are called: a list of modules has no forward pass of its own."""
    if not isinstance(stage, nn.ModuleList):
        return [stage]
    return [leaf for x in stage for leaf in _flat(x)]
