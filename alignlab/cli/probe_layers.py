"""`alignlab probe layers`: single frozen layers of a language model between two linear layers that learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from alignlab.files import save_figure


def layers(
    task: str = typer.Option("denoise", help="denoise, deblur, derain, pepper, mask, rotate, flip or repeat."),
    encoder: str = typer.Option(
        "mae", help="mae, beit, vqgan, pca, a path or a hub id, with a decoder; +position appends a position code."
    ),
    llm: str = typer.Option("smollm2", help="smollm2, a folder or a hub id; LLM@random has fresh weights."),
    data: str = typer.Option("scenes", help="Images, as measure takes them; scenes are rendered to learn from."),
    chosen: str = typer.Option(
        "all", "--layers", help="all, or numbers and ranges as 1,5,10-12; layer 1 is the first block."
    ),
    seeds: int = typer.Option(3, help="Trainings of every layer and baseline."),
    steps: int | None = typer.Option(None, help="Updates of one training."),
    batch_size: int | None = typer.Option(None, help="Images an update."),
    lr: float | None = typer.Option(None, help="Peak rate."),
    train_n: int = typer.Option(1000, help="Images to learn from, encoded once and kept in memory."),
    n: int = typer.Option(128, "--n", help="Held-out images to measure on."),
    seed: int = typer.Option(0, help="The first of the seeds."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("auto", help="auto (bfloat16 where quick), bfloat16 or float32, of the language model."),
    out: Path | None = typer.Option(
        None, help="Folder for result.json, layers.png and every finished training; the same command goes on there."
    ),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Restore images through each single layer of a frozen language model, no causal mask, no positions; beside it an MLP of
    as many parameters, a layer of random weights, and one linear layer.

    Example: alignlab probe layers --task denoise --encoder mae --llm smollm2 --out runs/layers
    """
    from dataclasses import replace

    from alignlab.cli.common import (
        check_dtype,
        check_positive,
        check_whole,
        check_writable,
        output_folder,
        pick_device,
        write_json,
    )
    from alignlab.data import load_dataset
    from alignlab.probing import layers as probing
    from alignlab.probing.layers_figure import curve
    from alignlab.provenance import laboratory
    from alignlab.training import dtype_of

    check_positive({"steps": steps, "batch-size": batch_size, "lr": lr})
    check_whole({"seed": seed})
    check_dtype(dtype)
    where = pick_device(device)
    load_dataset(data, captions=False)  # what is wrong shows before a folder is made
    usual = probing.RECIPE
    recipe = replace(usual, steps=steps or usual.steps, batch=batch_size or usual.batch, lr=lr or usual.lr, seed=seed)
    recipe = replace(recipe, warmup=min(recipe.warmup, recipe.steps // 5))
    try:
        plan = probing.Plan(
            task=task,
            encoder=encoder,
            llm=llm,
            data=data,
            layers=probing.numbers(chosen),
            seeds=seeds,
            recipe=recipe,
            train_n=train_n,
            n=n,
        )
    except ValueError as error:  # its fields are called as the options are
        raise ValueError(f"--{error}") from error
    folder = output_folder(out, "probe-layers")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    plan = replace(plan, recipe=replace(recipe, dtype=dtype_of(folder, dtype, where)))
    found = probing.run(plan, folder, device=where)
    result = {"laboratory": laboratory([encoder], llm, data), **found}
    save_figure(curve(result), folder / "layers.png", dpi=150)
    write_json(folder / "result.json", result)
    if json_file is not None:
        write_json(json_file, result)
    _show(result)
    typer.echo(f"written: {folder}")


def _show(result: dict[str, Any]) -> None:
    """PSNR and SSIM of every arm, and each layer's PSNR over the baselines'."""
    from rich.table import Table

    from alignlab import paper
    from alignlab.cli.common import console

    title = "one frozen layer between two linear ones: PSNR in dB and SSIM on images that were not trained on"
    table = Table(title=title, title_justify="left")
    for heading in ("", "PSNR", "95% interval", "SSIM", "over MLP", "over random", "over linear"):
        table.add_column(heading, no_wrap=True, justify="right" if heading else "left")
    lines = {"degraded": "degraded", "alone": "encoder + decoder", "linear": "one linear layer", "mlp": "MLP"}
    for name, label in {**lines, "random": "random layer"}.items():
        table.add_row(label, *_own(result[name]))
    table.add_section()
    for row in result["layers"]:
        gains = [_gain(row[f"over_{kind}"]["psnr"]) for kind in ("mlp", "random", "linear")]
        mark = " (best)" if row["layer"] == result["best"] else ""
        table.add_row(f"layer {row['layer']}{mark}", *_own(row), *gains)
    console().print(table)
    over, under = result["clearly_over"], result["clearly_under"]
    names = {"mlp": "the MLP", "random": "the random layer", "linear": "the linear layer"}
    told = ", ".join(f"{len(over[key])} above and {len(under[key])} below {name}" for key, name in names.items())
    typer.echo(f"of {len(result['layers'])} layer(s), with all of the difference's interval: {told}")
    typer.echo(f"the paper, of its models: {paper.FIG12}")
    if result["seeds"] == 1:
        typer.echo("note: one seed; the intervals are over images alone, and say nothing of other trainings")


def _own(found: dict[str, Any]) -> list[str]:
    psnr, ssim = found["psnr"], found["ssim"]
    if psnr["mean"] is None:
        return ["inf", "", f"{ssim['mean']:.3f}"]
    return [f"{psnr['mean']:.2f}", f"{psnr['ci95'][0]:.2f} to {psnr['ci95'][1]:.2f}", f"{ssim['mean']:.3f}"]


def _gain(found: dict[str, Any]) -> str:
    if found["mean"] is None:
        return ""
    return f"{found['mean']:+.2f} ({found['ci95'][0]:+.2f} to {found['ci95'][1]:+.2f})"
