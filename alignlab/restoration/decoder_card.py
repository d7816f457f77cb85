"""What a fine-tuned decoder can do, before and after, on pictures it never saw; written beside its weights."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignlab.models.mae import DECODER_FILE, MAEEncoder, read_decoder
from alignlab.models.weights import sha256_file
from alignlab.pretrain.card import loss_curve
from alignlab.pretrain.evaluate import images_of
from alignlab.provenance import environment, shown
from alignlab.restoration.decoder import RECIPE, Run
from alignlab.restoration.experiment import TestSet, open_test
from alignlab.restoration.fit import named_data
from alignlab.restoration.pictures import save_grid
from alignlab.restoration.quality import mean, psnr, ssim

log = logging.getLogger(__name__)

MOST = 1024  # images of a set that are measured
SHOWN = 8
BATCH = 64


def diagonal(encoder: MAEEncoder) -> Tensor:
    """The patches on the main diagonal of the grid, bool `[T]` (the LM4LV paper's Fig. 9)."""
    return torch.eye(round(encoder.patches**0.5), dtype=torch.bool).flatten()


def pixels_of(patches: Tensor, size: int) -> Tensor:
    """A choice of patches, bool `[T]`, as a choice of pixels, bool `[size, size]`."""
    grid = round(len(patches) ** 0.5)
    return patches.view(grid, grid).repeat_interleave(size // grid, 0).repeat_interleave(size // grid, 1)


def part_psnr(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """PSNR in dB `[B]` over the pixels where `where`, bool `[H, W]`, is true; 8 bits, no border."""
    levels = [x.double().mul(255).round()[:, :, where] for x in (a, b)]  # [B, 3, pixels]
    error = (levels[0] - levels[1]).square().flatten(1).mean(1)  # [B]
    return 10 * torch.log10(255**2 / error)


def measure(encoder: MAEEncoder, images: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
    """Held-out figures of an encoder with its decoder, and its pictures: with nothing hidden, and with the diagonal."""
    hidden = diagonal(encoder)
    lent = encoder.model.config.norm_pix_loss
    whole, filled = [], []
    for batch in images.split(BATCH):
        brightness = {"brightness_of": batch} if lent else {}
        whole.append(encoder.decode(encoder.encode(batch), **brightness).cpu())
        filled.append(encoder.fill(batch, hidden, **brightness).cpu())
    painted, gaps = torch.cat(whole), torch.cat(filled)
    pixels = pixels_of(hidden, encoder.image_size)
    figures = {
        "PSNR (dB)": mean(psnr(images, painted)).value,
        "SSIM": mean(ssim(images, painted)).value,
        "diagonal hidden: PSNR of the visible patches (dB)": mean(part_psnr(images, gaps, ~pixels)).value,
        "diagonal hidden: PSNR of the hidden patches (dB)": mean(part_psnr(images, gaps, pixels)).value,
    }
    return figures, painted, gaps


def open_tests(run: Run, sources: tuple[str, ...]) -> list[TestSet]:
    """The sets that a decoder is measured on: `sources`, at most the first 1,024 images, or, without any, the shipped scenes
    and `run.data`; of a set that was learnt from, what was held out. Errors as `experiment.open_test`.
    """
    learnt = [named_data(source) for source in run.data]
    found = [
        open_test(source, learnt, whole_by="training" if run.all_items else "")
        for source in sources or tuple(dict.fromkeys(("scenes", *run.data)))
    ]
    return [replace(one, indices=list(one.indices)[:MOST]) for one in found]


def write_card(
    encoder: MAEEncoder, before: MAEEncoder, run: Run, tests: list[TestSet], history: dict[str, Any]
) -> dict[str, Any]:
    """Measure `encoder` with the decoder in `run.out` as a user will read it, and `before` with its own.

    Writes `README.md`, `card.json`, `loss.png`, `before-after.jpg` (the paper's Fig. 10) and `diagonal.jpg` (Fig. 9);
    returns the card, in which "held_out" is {set: {"before": figures, "after": figures}}.
    """
    encoder.use_decoder(*read_decoder(str(run.out)))
    measured: dict[str, dict[str, dict[str, float]]] = {}
    rows: dict[str, dict[str, Tensor]] = {"before-after": {}, "diagonal": {}}
    hidden = pixels_of(diagonal(encoder), encoder.image_size)
    for test in tests:
        data, indices = test.data, test.indices
        log.info("measuring the decoder before and after on %d images of %s", len(indices), data.name)
        images = images_of(data, indices, encoder.image_size)
        old, old_painted, old_filled = measure(before, images)
        new, painted, filled = measure(encoder, images)
        measured[f"{data.name} ({len(indices)} items)"] = {"before": old, "after": new}
        chosen = np.linspace(0, len(images) - 1, SHOWN).astype(int)
        one = data.name
        rows["before-after"] |= {
            one: images[chosen],
            f"{one}: before": old_painted[chosen],
            f"{one}: after": painted[chosen],
        }
        seen = torch.where(hidden, 0.5, images[chosen])
        rows["diagonal"] |= {
            f"{one}: shown": seen,
            f"{one}: before": old_filled[chosen],
            f"{one}: after": filled[chosen],
        }
    for name, strips in rows.items():
        save_grid(strips, run.out / f"{name}.jpg")
    loss_curve(
        history["log"], "absolute error of pixels in -1..1", "fine-tuning the decoder", run.out / "loss.png", "l1"
    )
    card = {
        "kind": "mae decoder",
        "encoder": encoder.checkpoint,
        "parameters": sum(p.numel() for p in encoder.model.decoder.parameters()),
        "sha256": sha256_file(run.out / DECODER_FILE),
        "data": [shown(source) for source in run.data],
        "loss": run.loss,
        "crops": run.crops,
        "accumulate": run.accumulate,
        "recipe": asdict(run.recipe),
        "images_seen": run.recipe.steps * run.recipe.batch,
        "seconds": round(history["seconds"]),
        "held_out": measured,
        "environment": environment(run.device),
    }
    card["environment"].pop("command")
    (run.out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    (run.out / "README.md").write_text(_text(run, encoder, card))
    return card


def _command(run: Run, encoder: MAEEncoder, card: dict[str, Any]) -> str:
    """The command that makes the decoder anew: whatever differs from what it would do by itself."""
    given = {"encoder": encoder.name, "loss": run.loss, "crops": run.crops}
    usual = asdict(RECIPE)
    for option, name in (
        ("steps", "steps"),
        ("batch-size", "batch"),
        ("lr", "lr"),
        ("seed", "seed"),
        ("dtype", "dtype"),
    ):
        if card["recipe"][name] != usual[name]:
            given[option] = card["recipe"][name]
    if run.accumulate > 1:
        given["accumulate"] = run.accumulate
    data = [f"--data {name}" for name in card["data"]]
    return " ".join(["alignlab restore decoder", *data, *(f"--{k} {v}" for k, v in given.items() if v is not None)])


def _text(run: Run, encoder: MAEEncoder, card: dict[str, Any]) -> str:
    env, recipe = card["environment"], card["recipe"]
    lines = [
        f"# {run.out.resolve().name}: a reconstructing decoder for {encoder.name}",
        "",
        f"The decoder of `{encoder.checkpoint}`, fine-tuned to reproduce pictures of which nothing is hidden, with the encoder "
        "frozen (LM4LV, section 3.2 and App. A.2). The file holds the decoder alone, in float16.",
        "",
        f"Made by `{_command(run, encoder, card)}`"
        + ("; every fifth picture of a folder was held out." if not run.all_items else "."),
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {card['parameters']:,} |",
        f"| steps, batch, images seen | {recipe['steps']:,}, {recipe['batch']}, {card['images_seen']:,} |",
        f"| AdamW | rate {recipe['lr']:.2g}, warm-up {recipe['warmup']}, betas {recipe['betas']}, decay {recipe['weight_decay']} |",
        f"| time | {card['seconds'] / 60:.0f} minutes on {env['processor']}, {env['threads']} thread(s), {recipe['dtype']} |",
        f"| seed | {recipe['seed']} |",
        f"| torch, transformers | {env['torch']}, {env['transformers']} |",
        f"| SHA-256 of {DECODER_FILE} | `{card['sha256']}` |",
        "",
        "## On pictures it never saw",
        "",
        "Before is the decoder that came with the encoder. PSNR and SSIM as BasicSR computes them (8 bits, border of 4).",
        "",
        "| data | figure | before | after |",
        "|---|---|---|---|",
    ]
    for data, figures in card["held_out"].items():
        lines += [f"| {data} | {k} | {v:.4g} | {figures['after'][k]:.4g} |" for k, v in figures["before"].items()]
    lines += [
        "",
        "![before and after](before-after.jpg)",
        "",
        "With the patches on the diagonal hidden from the encoder (the paper's Fig. 9; grey in the first row): what fills "
        "them in, before and after.",
        "",
        "![diagonal hidden](diagonal.jpg)",
        "",
        "![loss](loss.png)",
        "",
    ]
    return "\n".join(lines)
