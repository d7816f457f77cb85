"""The card that a checkpoint ships with: what it is, how it was made, what it can do on held-out pictures."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab.data import load_dataset
from alignlab.files import save_figure
from alignlab.models.weights import sha256_file
from alignlab.pretrain import clip
from alignlab.pretrain.evaluate import components, images_of, masked_codes, masked_pixels, reconstruction
from alignlab.pretrain.pool import held_out
from alignlab.pretrain.run import IMAGE_SIZE, Run
from alignlab.provenance import environment

SHOWN = 8  # pictures in the sample strip

ABOUT = {
    "mae": (
        "A masked autoencoder (He et al. 2021), `ViTMAEForPreTraining` of transformers: 64 px, patches of 8, 64 patches "
        "and [CLS], width 256, 6 blocks; decoder of width 192, 3 blocks. Trained with the masked objective only "
        "(75% hidden, plain pixels): its decoder fills in, it was not tuned to reproduce what is visible."
    ),
    "dvae": (
        "The tokenizer of `beit-tiny`: DALL-E's discrete VAE (Ramesh et al. 2021), smaller. 64 px to 8 x 8 codes of 1,024. "
        "Trained through a Gumbel-softmax (temperature 1 to 1/16) on the squared error; stored in float16."
    ),
    "beit": (
        "A BEiT (Bao et al. 2022), `BeitForMaskedImageModeling` of transformers: 64 px, patches of 8, 64 patches and "
        "[CLS], width 192, 8 blocks, shared relative positions. Names `dvae-tiny`'s codes of the hidden 40% of the patches. "
        "(The shipped one was taught the codes of `dvae-tiny` before that was stored in float16.)"
    ),
    "vqgan": (
        "A VQGAN (Esser et al. 2021) in taming-transformers' layout: 64 px to 8 x 8 codes of 1,024 (f8), latents of width "
        "32. Absolute and squared error, code book, and a patch discriminator in the last 40% of training; no perceptual "
        "loss, as that needs a network trained by others."
    ),
    "clip": (
        "A CLIP (Radford et al. 2021) of open_clip, the embedded laboratory's judge of captions: a ResNet for 64 px, and a text "
        "transformer of two blocks that reads 48 tokens of open_clip's own tokenizer. It knows scenes and the words that "
        "describe them, nothing else: a token that no training caption holds is nothing to it. A CLIPScore of it says "
        "how well a caption fits a scene, and is not comparable with that of another CLIP. Matrices are stored in float16."
    ),
    "pca": (
        "The principal components of patches: 64 px, patches of 8, 64 tokens of all 192 components, all divided by one "
        "number. The decoder is the inverse, so that tokens hold what the pixels hold, in other coordinates, as far from "
        "each other. Nothing was trained: it is what LM4LV's other encoders are compared with."
    ),
}

RETRIEVAL = (
    "Retrieval among all items of a set: which of their captions is a picture's, which of the pictures a caption's. "
    "Every item's first caption counts, with CLIPScore's prompt before it; equal scores count as in random order."
)


def measure(run: Run, model: Any, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """Held-out figures of a model of the run's kind, and what it made of the images."""
    if run.kind == "mae":
        return masked_pixels(model, images)
    if run.kind == "beit":
        from alignlab.models.vision import load_dvae

        return masked_codes(model, load_dvae(run.tokenizer), images)
    if run.kind == "pca":
        return components(model, images)
    return reconstruction(model, images)


def load(run: Run) -> Any:
    """The checkpoint as a user will read it, from the files of `run.out`."""
    from alignlab.models import vision

    if run.kind == "dvae":
        return vision.load_dvae(str(run.out))
    if run.kind == "clip":
        return clip.load(run.out)
    return vision.load_vision(str(run.out), run.kind).model  # type: ignore[attr-defined]


def write_card(run: Run, history: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measure `run.out`'s checkpoint, write `README.md`, `card.json`, `samples.png` where it makes pictures and `loss.png`
    where it was trained there; the figures.
    """
    model = load(run)
    measured = clip.measure(run) if run.kind == "clip" else _depicted(run, model)
    if history["log"]:
        name = "mse" if "mse" in history["log"][0] else "loss"
        what = "cross-entropy" if run.kind in ("beit", "clip") else "squared error"
        loss_curve(history["log"], what, f"{run.kind}-tiny, training", run.out / "loss.png", name)
    digest = sha256_file(run.out / "model.safetensors")
    described = {
        "kind": run.kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": digest,
        "data": list(run.data),
        "recipe": asdict(run.recipe),
        "pool": asdict(run.pool),
        "images_seen": run.recipe.steps * run.recipe.batch,
        "seconds": round(history["seconds"]),
        "held_out": measured,
        "environment": environment(run.device),
    }
    # Folders are named, not located: where they lay is nobody's business.
    described["data"] = [source if source == "scenes" else Path(source).resolve().name for source in run.data]
    described["environment"].pop("command")
    if run.kind == "clip":
        described["pool"] = {what: history[what] for what in ("items", "captions", "tokens")}
        described["environment"]["open_clip"] = version("open_clip_torch")
    if run.kind == "pca":  # the rest of a recipe is about descending
        described["recipe"] = {what: described["recipe"][what] for what in ("steps", "batch", "seed")}
    (run.out / "card.json").write_text(json.dumps(described, indent=1) + "\n")
    (run.out / "README.md").write_text(_text(run, described))
    return measured


def _depicted(run: Run, model: Any) -> dict[str, dict[str, float]]:
    """The held-out figures of every source, and `samples.png`."""
    measured, strips = {}, []
    for source in dict.fromkeys(("scenes", *run.data)):
        data = load_dataset(source)
        indices = list(range(len(data))) if source == "scenes" else held_out(data)
        images = images_of(data, indices, IMAGE_SIZE)
        figures, pictures = measure(run, model, images)
        name = f"{data.name} ({len(indices)} items)"
        measured[name] = figures
        chosen = np.linspace(0, len(images) - 1, SHOWN).astype(int)
        strips += [images[chosen], pictures[chosen]]
    _samples(strips, run.out / "samples.png")
    return measured


def _text(run: Run, card: dict[str, Any]) -> str:
    sources = " ".join(f"--data {name}" for name in card["data"])
    rows = [f"| {data} | {k} | {v:.4g} |" for data, figures in card["held_out"].items() for k, v in figures.items()]
    env, recipe = card["environment"], card["recipe"]
    trained = "lr" in recipe
    other = "open_clip" if run.kind == "clip" else "transformers"
    return "\n".join(
        [
            f"# {run.kind}-tiny",
            "",
            ABOUT[run.kind],
            "",
            f"Made by `alignlab pretrain {run.kind} {sources}`, {'from scratch' if trained else 'in one pass'}, "
            f"on {' and '.join(card['data'])} {_learnt(card)}",
            "",
            "| | |",
            "|---|---|",
            f"| parameters | {card['parameters']:,} |",
            f"| steps, batch, images seen | {recipe['steps']:,}, {recipe['batch']}, {card['images_seen']:,} |",
            *(
                [
                    f"| AdamW | rate {recipe['lr']}, warm-up {recipe['warmup']}, betas {recipe['betas']}, "
                    f"decay {recipe['weight_decay']} |"
                ]
                if trained
                else []
            ),
            f"| time | {_time(card['seconds'])} on {env['processor']}, {env['threads']} thread(s), "
            f"{recipe.get('dtype', 'float64')} |",
            f"| seed | {recipe['seed']} |",
            f"| torch, {other} | {env['torch']}, {env[other]} |",
            f"| SHA-256 of model.safetensors | `{card['sha256']}` |",
            "",
            "## On pictures it never saw",
            "",
            "Whole pictures at 64 px; `scenes` is the shipped evaluation set."
            + (f" {RETRIEVAL}" if run.kind == "clip" else ""),
            "",
            "| data | figure | value |",
            "|---|---|---|",
            *rows,
            "",
            *_shown(run.kind),
            *(["![loss](loss.png)", ""] if trained else []),
        ]
    )


def _learnt(card: dict[str, Any]) -> str:
    """How the training pictures were chosen and cut."""
    if card["kind"] == "clip":
        return (
            f"({card['pool']['items']:,} pictures of the training split, {card['pool']['captions']:,} captions of "
            f"{card['pool']['tokens']} different tokens; of a folder every fifth item was held out). A step takes every "
            "picture's first caption and one of its others; crops lose 15% of a side at most, and no picture is mirrored of "
            "which it is said what is left or right."
        )
    return (
        "in equal shares: rendered scenes of the training split, and random crops of the folder's pictures, "
        "of which every fifth was held out."
    )


def _shown(kind: str) -> list[str]:
    """The strip of samples, and what it shows."""
    if kind == "clip":
        return []
    return [
        "![samples](samples.png)",
        "",
        "Rows in pairs: the pictures, and what the model makes of them"
        + (" with three quarters of the patches hidden." if kind == "mae" else "")
        + (" (hidden codes replaced by the named ones, then painted by the dVAE)." if kind == "beit" else "")
        + ("." if kind in ("dvae", "vqgan") else "")
        + (" with the first sixteenth of the components alone." if kind == "pca" else ""),
        "",
    ]


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


def _samples(strips: list[Tensor], path: Path) -> None:
    from PIL import Image

    rows = [torch.cat(list(strip), dim=2) for strip in strips]  # [3, S, SHOWN * S]
    sheet = torch.cat(rows, dim=1).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    picture = Image.fromarray(sheet.numpy())
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(path, optimize=True)


def loss_curve(log: list[dict[str, float]], what: str, title: str, path: Path, name: str = "loss") -> None:
    """A training's loss against its steps, as a picture; `name` is the key of the loss in the log."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([row["step"] for row in log], [row[name] for row in log])
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(what)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    save_figure(figure, path, dpi=100)
