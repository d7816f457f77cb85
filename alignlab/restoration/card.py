"""What trained adapters are, for whoever finds them: a README beside the file, made of its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignlab.models.weights import sha256_file
from alignlab.pretrain.card import loss_curve
from alignlab.restoration.design import Design
from alignlab.trained import ADAPTERS


def write_card(result: dict[str, Any], folder: Path) -> None:
    """Write `README.md` and `loss.png` for what `experiment.run` made in `folder`."""
    loss_curve(result["learnt"]["log"], "squared error of the tokens", "training", folder / "loss.png", name="visual")
    (folder / "README.md").write_text(_text(result, folder))


def _text(result: dict[str, Any], folder: Path) -> str:
    design, frozen, learnt, recipe = (result[key] for key in ("design", "frozen", "learnt", "recipe"))
    env = result["environment"]
    tasks = ", ".join(design["tasks"])
    between = " and ".join(f"`{frozen[part]}`" for part in ("encoder", "llm") if part in frozen)
    lines = [
        f"# {folder.resolve().name}: {design['how']} for {tasks}",
        "",
        f"What was trained between {between}, which stay frozen"
        + (f" but for updates of rank {design['lora']}" if design["lora"] else "")
        + f". The file holds nothing else. The decoder is `{frozen['decoder']}`.",
        "",
        f"Made by `{command(result)}`; use it with `alignlab restore apply IMAGE --checkpoint {folder.resolve().name}`.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {learnt['parameters']:,} |",
        f"| steps, batch, images seen | {recipe['steps']:,}, {recipe['batch']}, {learnt['images']:,} |",
        f"| data | {', '.join(one['name'] for one in result['data'])} |",
        f"| features | {design['features']} |",
        f"| AdamW | rate {recipe['lr']:.2g}, warm-up {recipe['warmup']}, {recipe['schedule']} decay, betas "
        f"{tuple(recipe['betas'])}, weight decay {recipe['weight_decay']:g} |",
        f"| time | {learnt['seconds'] / 60:.0f} minutes on {env['processor']}, {env['threads']} thread(s) |",
        f"| seed | {recipe['seed']} |",
        f"| torch, transformers | {env['torch']}, {env['transformers']} |",
        f"| SHA-256 of {ADAPTERS} | `{sha256_file(folder / ADAPTERS)}` |",
        "",
        "## On pictures it never saw",
        "",
        "PSNR (dB) / SSIM as BasicSR computes them; the gain is over encoder and decoder alone. Differences are taken image by "
        "image, with a 95% interval over images. Misaligned outputs fit the truth better when it is moved by a patch.",
        "",
        "| task | data | images | degraded | encoder + decoder | restored | restored - degraded | gain in PSNR | gain in SSIM | "
        "misaligned |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in result["evaluations"]:
        cells = [one["task"], one["data"]["name"], f"{one['n']}"]
        cells += [pair_of(one[column]) for column in ("degraded", "alone", "restored")]
        cells += [lift_of(one), gain_of(one), ssim_gain_of(one), f"{one['misaligned']}"]
        lines.append(f"| {' | '.join(cells)} |")
    for one in result["evaluations"]:
        if one.get("told"):
            lines += [
                "",
                f"{one['task']} on {one['data']['name']}: {pair_of(one['told'])} where it reads the true answer so far.",
            ]
        lines += ["", f"![{one['task']} on {one['data']['name']}]({one['picture']})"]
    lines += ["", "![loss](loss.png)", ""]
    return "\n".join(lines)


def task_of(one: Mapping[str, Any]) -> str:
    """The task of an evaluation, with what differs from the strength that is trained on, as `--strength` takes it.

    >>> task_of({"task": "denoise", "strength": {"sigma": [75, 75]}}), task_of({"task": "flip", "strength": None})
    ('denoise (sigma=75,75)', 'flip')
    """
    from alignlab.data.degradations import TASKS

    def words(degradation: Mapping[str, Any]) -> list[str]:
        return [
            f"{name}={','.join(map(str, x)) if isinstance(x, list | tuple) else x}" for name, x in degradation.items()
        ]

    usual = words(asdict(TASKS[one["task"]])) if one["task"] in TASKS else []  # type: ignore[call-overload]
    told = [word for word in words(one.get("strength") or {}) if word not in usual]
    return one["task"] + (f" ({' '.join(told)})" if told else "")


def pair_of(figures: dict[str, Any], digits: int = 3) -> str:
    """PSNR and SSIM in one cell, with how many images' PSNR is infinite where that is not all.

    >>> pair_of({"psnr": {"mean": 29.437, "infinite": 68}, "ssim": {"mean": 0.9}}, 2)
    '29.44 (68 inf) / 0.90'
    """
    psnr, ssim, infinite = figures["psnr"]["mean"], figures["ssim"]["mean"], figures["psnr"].get("infinite")
    exact = f" ({infinite} inf)" if infinite else ""
    return f"{'inf' if psnr is None else f'{psnr:.2f}{exact}'} / {ssim:.{digits}f}"


def endless(one: dict[str, Any], other: str = "alone") -> str:
    """What stands for a difference to `other` that no image has, as each has an infinite PSNR in one of the two, or in both.

    >>> exact, finite = {"psnr": {"mean": None}}, {"psnr": {"mean": 30.0}}
    >>> [endless({"restored": ours, "alone": exact}) for ours in (finite, exact)]
    ['-inf', 'both exact']
    """
    ours, theirs = (one[column]["psnr"]["mean"] is None for column in ("restored", other))
    return {(False, True): "-inf", (True, False): "+inf", (True, True): "both exact"}.get((ours, theirs), "–")


def lift_of(one: dict[str, Any]) -> str:
    """The mean of restored minus degraded in PSNR with its interval; "–" where the answer is another picture than was given."""
    from alignlab.data.degradations import TASKS

    if one["lift"] is None:
        return "–" if TASKS[one["task"]].spatial else endless(one, "degraded")
    return difference_of(one["lift"]["psnr"], 2)


def gain_of(one: dict[str, Any]) -> str:
    """The mean gain in PSNR with its interval, or what stands for one without a mean."""
    return endless(one) if one["gain"] is None else difference_of(one["gain"]["psnr"], 2)


def ssim_gain_of(one: dict[str, Any]) -> str:
    """The mean gain in SSIM with its interval; "–" where no image has one in PSNR, and neither is told."""
    return "–" if one["gain"] is None else difference_of(one["gain"]["ssim"], 3)


def difference_of(figures: dict[str, Any], digits: int) -> str:
    """
    >>> difference_of({"mean": 0.448, "ci95": [0.113, 0.770]}, 2)
    '+0.45 (+0.11 to +0.77)'
    """
    low, high = figures["ci95"]
    return f"{figures['mean']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def command(result: dict[str, Any]) -> str:
    """The command that makes the adapters anew: whatever differs from what it would do by itself."""
    from alignlab.restoration.fit import RECIPE

    usual, design, recipe = asdict(Design()), result["design"], result["recipe"]
    words = ["alignlab restore train", *(f"--task {task}" for task in design["tasks"])]
    for name in ("how", "encoder", "decoder", "llm", "features", "begin", "task_tokens", "lora"):
        if design.get(name, usual[name]) != usual[name]:
            words.append(f"--{name.replace('_', '-')} {design[name]}")
    words += [f"--{name}" for name in ("causal", "rotary") if design[name]]
    words += [f"--data {one['name']}" for one in result["data"]]
    ours = asdict(RECIPE)
    for option, name in (
        ("steps", "steps"),
        ("batch-size", "batch"),
        ("lr", "lr"),
        ("warmup", "warmup"),
        ("seed", "seed"),
    ):
        if recipe[name] != ours[name]:
            words.append(f"--{option} {recipe[name]}")
    words.append(f"--dtype {recipe['dtype']}")  # what is usual depends on the machine
    if result["crops"]:
        words.append(f"--crops {result['crops']}")
    if result["n"] != 256:
        words.append(f"--n {result['n']}")
    return " ".join(words)
