"""Can a single layer of a frozen language model restore images? (App. B.3 and Fig. 12 of the LM4LV paper.)

Each layer stands by itself between two linear layers that learn; beside it an MLP of as many parameters, a layer of random
weights and a single linear layer. All read the same tokens, which are encoded once. Layers count as everywhere: layer 1 is
the first block, layer 0 would be the embedding.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.data import resize
from alignlab.data.degradations import NAMES as TASKS
from alignlab.data.degradations import TASKS as DEGRADATIONS
from alignlab.data.degradations import pair
from alignlab.files import whole
from alignlab.models import load_llm
from alignlab.models.llm import LanguageModel
from alignlab.probing import between, single
from alignlab.probing.layers_result import SIZES, Arm, assemble
from alignlab.progress import progress
from alignlab.provenance import environment, shown_model
from alignlab.restoration.batches import picture_batches
from alignlab.restoration.coordinates import open_encoder, whitened
from alignlab.restoration.design import FLOOR, POWER
from alignlab.restoration.experiment import TEST_SEED, open_test
from alignlab.restoration.fit import FITTED_ON, named_data, plain_attention
from alignlab.restoration.fit import RECIPE as LM4LV_EMBEDDED
from alignlab.restoration.quality import psnr, ssim
from alignlab.training import Recipe, alone

SCHEMA = "alignlab.probe-layers/1"
# Few steps, and a layer out that is solved for in the end: a rate higher than LM4LV's makes the most of them.
RECIPE = replace(LM4LV_EMBEDDED, steps=200, batch=8, lr=2e-2)
RUN, PAIRS = "run.json", "pairs"
MEASURED = (*SIZES, "parameters")  # what is read again of an arm
FRESH = 1_000_003  # added to the seed of random layers
BEGUN_ON = 128  # pictures that the layers begin with
BATCH = 64  # pictures at once where nothing learns


@dataclass(frozen=True)
class Plan:
    """What is probed, on what and how. `layers` are all where there are none; seed `s` of `seeds` learns from the recipe's
    seed plus s. `train_n` pictures to learn from, `n` held-out ones to measure on. Raises ValueError for what cannot be.
    """

    task: str = "denoise"
    encoder: str = "mae"
    llm: str = "smollm2"
    data: str = "scenes"
    layers: tuple[int, ...] = ()
    seeds: int = 3
    recipe: Recipe = field(default_factory=lambda: RECIPE)
    train_n: int = 1000
    n: int = 128

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        for name, value, least in (("seeds", self.seeds, 1), ("train-n", self.train_n, 2), ("n", self.n, 2)):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        if 0 in self.layers:
            raise ValueError("layers are 1 for the first block and so on, got 0; layer 0 is the embedding")


def numbers(told: str) -> tuple[int, ...]:
    """Layers as they are told, "0,5,10-12", in order and each once; none for "all". ValueError for anything else."""
    if told.strip() == "all":
        return ()
    found: set[int] = set()
    for part in told.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ValueError(f"layers must be all, or numbers and ranges as 1,5,10-12, got {told!r}")
        if dash and int(last) - int(first) > 10_000:
            raise ValueError(f"layers {part} are more than any language model has")
        found |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def arms(plan: Plan, layers: Sequence[int]) -> list[Arm]:
    """The baselines first; then every layer with a seed before any with the next, so that an early result is whole."""
    seeds = range(plan.seeds)
    baselines = [Arm("linear"), *(Arm(kind, seed) for kind in ("mlp", "random") for seed in seeds)]
    return baselines + [Arm("layer", seed, layer) for seed in seeds for layer in layers]


@dataclass(eq=False)
class Material:
    """Tokens `[N, T, D]` of degraded and of clean training pictures, and pictures to measure on."""

    encoder: Any
    low: Tensor
    high: Tensor
    test_low: Tensor
    given: Tensor  # [n, 3, H, W], as the first column of Table 2
    alone: Tensor  # tokens of the second
    truth: Tensor

    def quality(self, images: Tensor) -> dict[str, list[float | None]]:
        """PSNR and SSIM of each image `[n, 3, H, W]`; None for inf."""
        truth = self.truth if images.shape == self.truth.shape else resize(self.truth, images.shape[-1])
        found = {"psnr": psnr(images, truth), "ssim": ssim(images, truth)}
        return {name: [x if math.isfinite(x) else None for x in values.tolist()] for name, values in found.items()}

    @torch.no_grad()
    def painted(self, tokens: Tensor) -> Tensor:
        """Tokens `[n, T, D]` -> images `[n, 3, H, W]`."""
        return torch.cat([self.encoder.decode(x).cpu().clamp(0, 1) for x in tokens.split(BATCH)])


@torch.no_grad()
def gather(plan: Plan, encoder: Any, test: Callable[[int], Callable[[int, int], Tensor]], n: int) -> Material:
    """Encode everything once. `encoder` is one with a decoder, in its own coordinates; those here are whitened, as LM4LV's
    (`restoration.coordinates`), fitted on the first pictures. `test(size)(0, n)` gives the clean pictures to measure on.
    """
    size, batch, seed = encoder.image_size, min(plan.train_n, BATCH), plan.recipe.seed
    draw = picture_batches((plan.data,), size, batch, seed)
    clean = torch.cat([draw(step) for step in range(math.ceil(plan.train_n / batch))])[: plan.train_n]
    encoder = whitened(encoder, clean[:FITTED_ON], power=POWER, floor=FLOOR)

    def encoded(images: Tensor, label: str) -> Tensor:
        parts: list[Tensor] = []
        with progress(f"encode {label}", len(images), "images") as tick:
            for part in images.split(BATCH):
                parts.append(encoder.encode(part))
                tick(sum(map(len, parts)))
        return torch.cat(parts)

    low, high = pair(clean, plan.task, seed=seed)
    low, high = encoded(low, "degraded pictures"), encoded(high, "clean pictures")
    test_low, truth = pair(test(size)(0, n), plan.task, seed=TEST_SEED)
    spatial = DEGRADATIONS[plan.task].spatial
    tokens = encoded(test_low, "pictures to measure on")
    answer = encoded(truth, "their truth") if spatial else tokens
    return Material(encoder, low, high, tokens, truth if spatial else test_low, answer, truth)


def probe(arm: Arm, plan: Plan, llm: LanguageModel, material: Material) -> nn.Module:
    """Train one arm. The MLP is the best of several, by its error on what it learnt from: how much its GELU should bend in the
    beginning depends on how long it learns, and it costs little beside a layer.
    """
    low, high, seed = material.low, material.high, plan.recipe.seed + arm.seed
    if arm.kind == "linear":
        return between.best_linear(low, high)

    def trained(middle: between.Middle, scale: float | None = None) -> between.Between:
        model = between.begin(middle, low[:BEGUN_ON], high[:BEGUN_ON], llm, seed, scale)
        between.learn(model, low, high, replace(plan.recipe, seed=seed))
        between.solve(model, low, high)
        return model

    if arm.kind == "mlp":
        return min((trained(F.gelu, bent) for bent in between.BENT), key=lambda one: between.error(one, low, high))
    if arm.kind == "layer":
        return trained(single.take(llm, arm.layer))
    # Its own numbers, and not those that the linear layers begin with.
    return trained(single.fresh(llm, (single.count(llm) + 1) // 2, FRESH + seed))


def run(plan: Plan, out: Path, *, device: str = "cpu") -> dict[str, Any]:
    """Train and measure every arm that `out` does not hold yet, and put the result together from all of them.

    Each arm's file in `pairs/` is written whole as soon as it is measured; more layers or seeds can be asked for later.
    Raises ValueError for a folder of another run, for a layer that there is not, and as the models do; RuntimeError where
    a loss is not finite.
    """
    began = time.monotonic()
    encoder = open_encoder(plan.encoder, device=device)
    if not hasattr(encoder, "decode"):
        raise ValueError(
            f"{encoder.name} has no decoder; --encoder takes a MAE, a BEiT with its dVAE, a VQGAN or pca here"
        )
    learnt = named_data(plan.data)
    test = open_test(plan.data, [learnt], plan.n)
    if len(test) < 2:
        raise ValueError(
            f"{test.data.name} leaves {len(test)} picture(s) to measure on, where intervals need two; give more pictures"
        )
    llm = load_llm(plan.llm, device=device, dtype=plan.recipe.dtype)
    layers = plan.layers or tuple(range(1, single.count(llm) + 1))
    for number in layers:
        if not 1 <= number <= single.count(llm):
            raise ValueError(f"{llm.name} has the layers 1 to {single.count(llm)}, got {number}")
    described = _described(
        {
            "schema": SCHEMA,
            "task": plan.task,
            "encoder": shown_model(plan.encoder),
            "llm": shown_model(plan.llm),
            "frozen": {
                "encoder": encoder.checkpoint,
                "decoder": getattr(encoder, "decoder_checkpoint", encoder.checkpoint),
                "llm": llm.checkpoint,
            },
            "features": "whitened",
            "data": {**learnt, "n": plan.train_n},
            "test": {"name": test.data.name, "fingerprint": test.data.fingerprint, "n": len(test), "seed": TEST_SEED},
            "recipe": asdict(plan.recipe),
            "begin": {"on": BEGUN_ON, "share": between.SHARE, "bent": between.BENT, "ridge": between.RIDGE},
        }
    )
    with alone(out):
        _claim(out, described)
        wanted = arms(plan, layers)
        missing = [arm for arm in wanted if not (out / PAIRS / f"{arm.name}.json").is_file()]
        if missing or not (out / PAIRS / "given.json").is_file():
            with plain_attention(llm):
                for number in layers:  # what cannot be taken out shows before anything is encoded
                    single.take(llm, number)
                material = gather(plan, encoder, test.pictures, len(test))
                _keep(out, "given", _columns(material))
                with progress(
                    f"probe {llm.name} layer by layer", len(wanted), "trainings", len(wanted) - len(missing)
                ) as tick:
                    for done, arm in enumerate(missing, len(wanted) - len(missing) + 1):
                        _keep(out, arm.name, _measured(arm, plan, llm, material))
                        tick(done, arm.name)

        def kept(name: str) -> dict[str, Any]:
            return _read(out / PAIRS / f"{name}.json", *(("degraded", "alone") if name == "given" else MEASURED))

        result = {**described, **assemble(kept, plan.seeds, layers)}
        result["seconds"] = {"all": round(time.monotonic() - began, 1), "trained": len(missing)}
        result["environment"] = environment(device)
    return result


def _described(plain: dict[str, Any]) -> dict[str, Any]:
    """As a file gives it back: tuples are lists."""
    again: dict[str, Any] = json.loads(json.dumps(plain))
    return again


def _claim(out: Path, described: dict[str, Any]) -> None:
    """Make the folder this run's; ValueError where it is another's."""
    path = out / RUN
    if not path.is_file():
        _write(path, described)
        return
    for name, ours, theirs in _differences(described, _read(path)):
        raise ValueError(f"{out} holds another run: its {name} is {theirs}, not {ours}; choose another --out folder")


def _differences(ours: dict[str, Any], theirs: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name, ours and theirs of all that differs."""
    for name in ours:
        here, there = ours[name], theirs.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _differences(here, there, f"{within}{name} ")
        elif here != there:
            yield f"{within}{name}", here, there


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """ValueError for what is no JSON with these keys."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        _ = [found[key] for key in keys], found.items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged; delete it, and the same command will make it again") from error
    return found


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(value, allow_nan=False) + "\n")


def _keep(out: Path, name: str, value: dict[str, Any]) -> None:
    _write(out / PAIRS / f"{name}.json", value)


def _columns(material: Material) -> dict[str, Any]:
    return {
        "degraded": material.quality(_like(material.given, material)),
        "alone": material.quality(material.painted(material.alone)),
    }


def _like(images: Tensor, material: Material) -> Tensor:
    """As large as the decoder paints."""
    side = material.painted(material.alone[:1]).shape[-1]
    return images if images.shape[-1] == side else resize(images, side)


def _measured(arm: Arm, plan: Plan, llm: LanguageModel, material: Material) -> dict[str, Any]:
    began = time.monotonic()
    model = probe(arm, plan, llm, material)
    with torch.no_grad():
        tokens = torch.cat([model(x) for x in material.test_low.split(BATCH)])
    learnt = sum(p.numel() for p in model.parameters())
    about = {"kind": arm.kind, "layer": arm.layer or None, "seed": plan.recipe.seed + arm.seed, "parameters": learnt}
    found = material.quality(material.painted(tokens))
    return {**about, "scale": getattr(model, "scale", None), **found, "seconds": round(time.monotonic() - began, 2)}
