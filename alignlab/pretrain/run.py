"""`alignlab pretrain KIND`: build a small model, train it, measure it on pictures it never saw, write it with a card."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignlab.files import write_tensors
from alignlab.models.dvae import DVAE, DVAEConfig
from alignlab.models.pca import PCA, PCAConfig, fit_pca
from alignlab.models.vqgan import VQGAN, VQGANConfig
from alignlab.pretrain.objectives import CodeBook, MaskedCodes, MaskedPixels, SoftCodes
from alignlab.pretrain.pool import PoolConfig, batch, open_pool
from alignlab.progress import progress
from alignlab.training import Objective, Recipe, train

IMAGE_SIZE = 64
VOCAB = 1024

RECIPES = {
    "mae": Recipe(steps=3000, batch=64, lr=1e-3),
    "dvae": Recipe(steps=1600, batch=32, lr=2e-3, weight_decay=0.0, betas=(0.9, 0.99)),
    "beit": Recipe(steps=1500, batch=64, lr=1e-3),
    "vqgan": Recipe(steps=3600, batch=24, lr=8e-4, weight_decay=0.0, betas=(0.9, 0.99)),
    "clip": Recipe(steps=400, batch=128, lr=2e-3, warmup=40, weight_decay=0.1, betas=(0.9, 0.98)),
    "pca": Recipe(steps=375, batch=64),  # 24,000 pictures are read once; nothing descends
}


def build_mae() -> Any:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from alignlab.models.vision import set_position_codes

    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=IMAGE_SIZE,
            patch_size=8,
            hidden_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=1024,
            decoder_hidden_size=192,
            decoder_num_hidden_layers=3,
            decoder_num_attention_heads=6,
            decoder_intermediate_size=768,
            mask_ratio=0.75,
        )
    )
    set_position_codes(model)
    return model


def build_beit(tokenizer: str) -> Any:
    from transformers import BeitConfig, BeitForMaskedImageModeling

    return BeitForMaskedImageModeling(
        BeitConfig(
            image_size=IMAGE_SIZE,
            patch_size=8,
            hidden_size=192,
            num_hidden_layers=8,
            num_attention_heads=3,
            intermediate_size=768,
            vocab_size=VOCAB,
            use_mask_token=True,
            use_shared_relative_position_bias=True,
            tokenizer_checkpoint=tokenizer,  # type: ignore[call-arg]  # the dVAE that `decode` paints with
        )
    )


def build_dvae() -> DVAE:
    return DVAE(DVAEConfig(hidden=48, blocks_per_group=1, vocab=VOCAB, decoder_init=64, image_size=IMAGE_SIZE))


def build_vqgan() -> VQGAN:
    return VQGAN(
        VQGANConfig(
            channels=32,
            channel_multipliers=(1, 2, 2, 4),
            residual_blocks=1,
            attention_resolutions=(8,),
            latent_channels=64,
            embedding=32,
            codes=VOCAB,
            image_size=IMAGE_SIZE,
        )
    )


@dataclass(frozen=True)
class Run:
    """One pretraining: what, on what, how, to where."""

    kind: str
    data: tuple[str, ...]
    recipe: Recipe
    out: Path
    pool: PoolConfig = field(default_factory=PoolConfig)
    device: str = "cpu"
    tokenizer: str = "dvae-tiny"


def objective(run: Run) -> Objective:
    """The model of a kind with what it learns from, freshly initialised from the recipe's seed."""
    torch.manual_seed(run.recipe.seed)
    if run.kind == "mae":
        return MaskedPixels(build_mae(), run.recipe)
    if run.kind == "dvae":
        return SoftCodes(build_dvae(), run.recipe)
    if run.kind == "vqgan":
        return CodeBook(build_vqgan(), run.recipe)
    if run.kind == "beit":
        from alignlab.models.vision import load_dvae

        return MaskedCodes(build_beit(run.tokenizer), load_dvae(run.tokenizer, run.device), run.recipe)
    raise ValueError(f"kind must be one of {', '.join(RECIPES)}, got {run.kind!r}")


def pretrain(run: Run) -> dict[str, Any]:
    """Train to the end of the recipe (resuming what `run.out` holds) and write the checkpoint there.

    The components of "pca" come of one pass over the recipe's batches, which has nothing to resume.
    """
    if run.kind == "clip":
        from alignlab.pretrain import clip

        return clip.pretrain(run)
    pools = [open_pool(source, run.pool) for source in run.data]
    if run.kind == "pca":
        return _fit_components(run, pools)
    goal = objective(run)
    history = train(
        goal,
        lambda step: batch(pools, run.recipe.batch, IMAGE_SIZE, step, run.recipe.seed),
        run.recipe,
        run.out,
        f"pretrain {run.kind}",
        run.device,
        about={"kind": run.kind, "data": list(run.data), "pool": asdict(run.pool), "tokenizer": run.tokenizer},
    )
    save(goal.modules["model"], run.out)
    return history


def _fit_components(run: Run, pools: list[np.ndarray]) -> dict[str, Any]:
    run.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    model = PCA(PCAConfig(image_size=IMAGE_SIZE))

    def batches() -> Iterator[Tensor]:
        with progress("pretrain pca", run.recipe.steps, "steps") as tick:
            for step in range(run.recipe.steps):
                yield batch(pools, run.recipe.batch, IMAGE_SIZE, step, run.recipe.seed).to(run.device)
                tick(step + 1, "")

    model.load_state_dict(fit_pca(batches(), model.config.patch, model.config.width))
    save(model, run.out)
    return {"log": [], "seconds": time.monotonic() - began, "steps": run.recipe.steps}


def save(model: nn.Module, folder: Path) -> None:
    """Weights as safetensors and the configuration as JSON, in transformers' layout where it is transformers' model."""
    write: Any = getattr(model, "save_pretrained", None)
    if write is not None:
        from alignlab.models.weights import quiet_transformers

        with quiet_transformers():
            write(folder)
        (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable to its owner alone
        return
    config: Any = model.config
    # The tokenizer only names and paints codes: half precision is enough, and half the size.
    stored = torch.float16 if isinstance(model, DVAE) else torch.float32
    state = {k: v.to(stored) for k, v in model.state_dict().items()}
    write_tensors(folder / "model.safetensors", state)
    described = {"model_type": type(model).__name__.lower(), **asdict(config)}
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")
