"""`alignlab probe induction`: which heads copy in context, and whether it is they that restore images."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alignlab.files import save_figure

if TYPE_CHECKING:
    from alignlab.restoration.lm4lv import LM4LV

SCHEMA = "alignlab.probe-induction/1"


def induction(
    llm: str | None = typer.Option(
        None,
        help="smollm2, a local folder or a hub id of a causal LM (default: smollm2, or the checkpoint's); \\[:K] and "
        "@random as measure takes them.",
    ),
    random: bool = typer.Option(False, "--random", help="The same with random weights beside it."),
    length: int = typer.Option(50, help="Random tokens of a text, which are then repeated."),
    n: int = typer.Option(16, "--n", help="Texts."),
    checkpoint: str | None = typer.Option(
        None, help="A folder that restore train wrote for lm4lv: look at its sequences of images too."
    ),
    task: str | None = typer.Option(None, help="One of the checkpoint's tasks (default: its first)."),
    data: str = typer.Option("scenes", help="Images for the checkpoint, held out from training."),
    images: int = typer.Option(24, help="Images for the checkpoint."),
    ablate: int = typer.Option(
        0, help="Switch off the top so many heads, and as many random ones, and see what breaks."
    ),
    draws: int = typer.Option(5, help="Random groups of heads of each kind, with --ablate."),
    seed: int = typer.Option(0, help="Of the texts and the random heads."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("float32", help="float32 or bfloat16, for the language model."),
    out: Path | None = typer.Option(
        None, help="Folder for result.json and pictures (default runs/probe-induction-TIME)."
    ),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Find the heads that attend from a token to the one after its earlier occurrence, on repeated random text and,
    with a checkpoint, from HQ token t to LQ token t + 1; --ablate switches them off.

    Example: alignlab probe induction --checkpoint runs/denoise --ablate 8 --random
    """
    from alignlab.cli.common import (
        check_positive,
        check_whole,
        check_writable,
        console,
        output_folder,
        pick_device,
        pick_dtype,
        write_json,
    )
    from alignlab.models import load_llm
    from alignlab.probing import attention, induction, induction_result
    from alignlab.provenance import environment, laboratory, shown, shown_model

    check_positive({"n": n, "images": images})
    check_whole({"ablate": ablate, "draws": draws, "seed": seed})
    where = pick_device(device)
    dtype = pick_dtype(dtype, where)
    if task is not None and checkpoint is None:
        raise ValueError("--task is one of a checkpoint's; give --checkpoint too")
    began = time.perf_counter()
    model, about = (None, None) if checkpoint is None else _trained(checkpoint, llm, task, data, images, where, dtype)
    name, encoders = llm or "smollm2", []
    if about is not None:
        plan, low, high, degraded, clean = (about.pop(key) for key in ("plan", "low", "high", "degraded", "clean"))
        name, encoders = llm or plan.llm, [plan.encoder]
    language = model.llm if model is not None else load_llm(name, device=where, dtype=dtype)
    if random and name.endswith("@random"):
        raise ValueError(f"--random goes with a trained language model; {name} has random weights already")
    attentions = attention.find(language)
    total = sum(one.heads for one in attentions)
    if 2 * ablate > total:
        raise ValueError(
            f"--ablate {ablate}: {language.name} has {total} heads, and as many random ones are needed too"
        )
    ids, start = induction.repeated_text(language, n, length, seed)
    folder = output_folder(out, "probe-induction")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    on_text, copied = induction.read_text(language, attentions, ids, start)
    texts = [_text(language, on_text, copied)]
    maps = {"induction-text": (on_text, f"{language.name}, repeated random text: attention to the successor")}
    if random:
        fresh = load_llm(f"{name}@random", device=where, dtype=dtype)
        found, lost = induction.read_text(fresh, attention.find(fresh), ids, start)
        texts.append(_text(fresh, found, lost))
        maps["induction-text-random"] = (found, f"{fresh.name}, repeated random text: attention to the successor")
        del fresh
    pictures: dict[str, Any] | None = None
    shared, groups, loss_of_images, quality = None, [], None, None
    chosen = {"text": on_text.top(ablate)} if ablate else {}
    if model is not None and about is not None:
        chosen_task = about["task"]
        on_images, loss = induction.read_images(model, attentions, low, high, chosen_task)
        maps["induction-images"] = (on_images, f"LM4LV, {chosen_task}: from HQ token t to LQ token t + 1")
        unchanged = (low - high).square().mean((1, 2)).cpu()  # [n]
        pictures = {
            **about,
            "visual_loss": induction_result.mean(loss).plain(),
            "visual_loss_of_lq": induction_result.mean(unchanged).plain(),
            "attention": induction_result.plain_attended(on_images),
        }
        shared = induction_result.agreement(on_text, on_images)
        loss_of_images = partial(induction.visual_loss, model, low, high, chosen_task)
        quality = partial(induction.restored_psnr, model, degraded, clean, chosen_task)
        if ablate:
            chosen["images"] = on_images.top(ablate)
    if ablate:
        found_without = induction.ablate(
            language, attentions, chosen, ids, start, loss_of_images, quality, draws=draws, seed=seed
        )
        groups = induction_result.plain_ablated(found_without)
        save_figure(induction_result.ablation_bars(groups), folder / "induction-ablation.png", dpi=130)
    for slug, (found, title) in maps.items():
        save_figure(induction_result.head_map(found, title), folder / f"{slug}.png", dpi=130)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "laboratory": laboratory(encoders, name, data if checkpoint is not None else "scenes"),
        "length": length,
        "text": texts,
        "images": pictures,
        "agreement": shared,
        "ablation": groups,
        "seconds": round(time.perf_counter() - began, 1),
        "config": {
            "llm": shown_model(name),
            "checkpoint": None if checkpoint is None else Path(checkpoint).expanduser().resolve().name,
            "data": shown(data),
            **{"random": random, "length": length, "n": n, "task": task, "images": images, "ablate": ablate},
            **{"draws": draws, "seed": seed, "device": where, "dtype": dtype},
        },
        "environment": environment(where),
    }
    result["reading"] = induction_result.reading(result)
    write_json(folder / "result.json", result)
    if json_file is not None:
        write_json(json_file, result)
    show(console(), result, folder)


def _trained(
    checkpoint: str, llm: str | None, task: str | None, data: str, images: int, device: str, dtype: str
) -> tuple[LM4LV, dict[str, Any]]:
    """The trained LM4LV and what is known of it and its images; `plan`, the tokens `low` and `high` `[n, T, D]` and the images
    `degraded` and `clean` are no part of a result."""
    import torch

    from alignlab import trained
    from alignlab.data.degradations import pair
    from alignlab.restoration.design import find, load, read
    from alignlab.restoration.experiment import TEST_SEED, open_unseen
    from alignlab.restoration.lm4lv import LM4LV

    plan, _, _ = read(find(checkpoint))
    if plan.how != "lm4lv":
        raise ValueError(f"--checkpoint {checkpoint} is {plan.how}; the sequences looked at here are those of lm4lv")
    chosen = task or plan.tasks[0]
    if chosen not in plan.tasks:
        raise ValueError(f"--task {chosen}: {checkpoint} has learnt {', '.join(plan.tasks)}")
    model, plan, described = load(checkpoint, device=device, dtype=dtype, llm=llm)
    assert isinstance(model, LM4LV)
    test = open_unseen(data, described["about"], checkpoint, images)
    clean = test.pictures(model.encoder.image_size)(0, len(test))
    with torch.no_grad():
        degraded, wanted = pair(clean, chosen, seed=TEST_SEED)
        low, high = model.encoder.encode(degraded), model.encoder.encode(wanted)
    about = {
        "checkpoint": find(checkpoint).resolve().name,
        "design": plan.plain(),
        "frozen": described["frozen"],
        "trained": trained.checkpoint(find(checkpoint)),
        "task": chosen,
        "data": {"name": test.data.name, "fingerprint": test.data.fingerprint, "items": len(test.data)},
        "n": len(test),
        **{"plan": plan, "low": low, "high": high, "degraded": degraded, "clean": wanted},
    }
    return model, about


def _text(llm: Any, found: Any, copied: Any) -> dict[str, Any]:
    from alignlab.probing.induction_result import plain_attended, plain_copying

    return {
        "llm": llm.name,
        "checkpoint": llm.checkpoint,
        "copying": plain_copying(copied),
        "attention": plain_attended(found),
    }


def show(console: Any, result: dict[str, Any], folder: Path) -> None:
    """Print the strongest heads, the maximum of each block, what switching off does, and what it all says."""
    from rich.markup import escape
    from rich.table import Table

    tables = [(f"{one['llm']}, random text repeated ({result['length']} tokens)", one) for one in result["text"]]
    if result["images"] is not None:
        tables.append((f"LM4LV on {result['images']['data']['name']}, {result['images']['task']}", result["images"]))
    for title, one in tables:
        found = one["attention"]
        table = Table(title=escape(f"{title}: {found['n']} items, chance {found['chance']:.4f}"), title_justify="left")
        for heading in (
            "block.head",
            "to the successor",
            "95% interval",
            "to the same",
            "to the average of the source",
        ):
            table.add_column(heading, justify="right")
        for head in found["top"]:
            low, high = head["successor"]["ci95"]
            figures = (f"{head['successor']['mean']:.3f}", f"{low:.3f} to {high:.3f}", f"{head['same']:.3f}")
            table.add_row(f"{head['block']}.{head['head']}", *figures, f"{head['source']:.4f}")
        console.print(table)
        highest = ", ".join(f"{b}: {x:.2f}" for b, x in zip(found["blocks"], found["block_max"], strict=True))
        console.print(escape(f"highest of each block: {highest}"))
    if result["ablation"]:
        console.print(_ablation_table(result["ablation"]))
    for sentence in result["reading"]:
        console.print(escape(sentence), soft_wrap=True)
    console.print("block.head: both count from 1; block K gives layer K, and is the last of LLM[:K].")
    console.print(escape(f"written: {folder}/result.json and pictures"), soft_wrap=True)


def _ablation_table(groups: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="Heads switched off (rise above all heads, 95% interval over items)", title_justify="left")
    outcomes = {"copied": "second copy", "visual": "visual loss", "restored": "PSNR (dB)"}
    losses = [(loss, head) for loss, head in outcomes.items() if groups[0][loss]]
    for heading in ("group", "heads", "draws", *(text for _, head in losses for text in (head, "rise"))):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    for one in groups:
        cells = []
        for loss, _ in losses:
            rise = one[loss]["rise"]
            low, high = rise["ci95"]
            cells += [
                f"{one[loss]['mean']:.3f}",
                "" if one["group"] == "none" else f"{rise['mean']:+.3f} ({low:+.3f}, {high:+.3f})",
            ]
        table.add_row(one["group"], str(len(one["heads"][0])), str(one["draws"]), *cells)
    return table
