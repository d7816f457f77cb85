"""`alignlab extract`: the features of every layer, kept on disk for later commands or written for other programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer

from alignlab.cli.common import check_positive, check_told_apart
from alignlab.files import slug

SCHEMA = "alignlab.extract/1"


def extract(
    encoder: list[str] = typer.Option([], help="mae, beit, vqgan, timm:NAME, a path or a hub id; may be repeated."),
    llm: list[str] = typer.Option([], help="smollm2, a local folder or a hub id of a causal LM; may be repeated."),
    data: str = typer.Option("scenes", help="Images with captions, as measure takes them."),
    n: int | None = typer.Option(None, "--n", help="Only the first n items."),
    pool: str | None = typer.Option(None, help="How encoders are pooled: cls, mean, concat (default: each one's own)."),
    llm_pool: str | None = typer.Option(None, help="How language models are pooled: mean or last."),
    save: bool = typer.Option(False, "--save", help="Write the features to files of their own in --out, too."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave out items that cannot be read."),
    batch_size: int = typer.Option(64, help="Items at once: speed, and in bfloat16 the last digits."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("float32", help="float32, bfloat16 or float16, of the models."),
    out: Path | None = typer.Option(None, help="Folder for result.json and files (default runs/extract-TIME)."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Compute the features of every layer for every item and keep them, so that later commands find them.

    With --save each model's go to a safetensors file as well: layers [N, L, D], or layer.0000, ... where widths differ. Under
    `accelerate launch` the processes share the work.

    Example: alignlab extract --encoder mae --llm smollm2 --data my-photos/ --save --out runs/features
    """
    from alignlab.cli.common import check_writable, console, output_folder, pick_device, write_json
    from alignlab.data import load_dataset
    from alignlab.features import extract_to_store
    from alignlab.features.extraction import spec_of
    from alignlab.models.registry import expand, find_encoder, find_llm
    from alignlab.provenance import environment, laboratory, shown, shown_model
    from alignlab.training import processes

    check_positive({"n": n, "batch-size": batch_size})
    names = expand(encoder)
    if not names and not llm:
        raise ValueError("give an --encoder, a --llm, or several")
    where = pick_device(device)
    among = processes(where)
    dataset = load_dataset(data, n=n, skip_bad=skip_bad).check(skip_bad, among)
    found = [(find_encoder(name, device=where, dtype=dtype), pool) for name in names]
    found += [(find_llm(name, device=where, dtype=dtype), llm_pool) for name in dict.fromkeys(llm)]
    check_told_apart([handle for handle, _ in found])
    for handle, chosen in found:
        spec_of(handle, dataset, chosen)  # a wrong --pool shows before anything is computed
    folder = output_folder(out, "extract") if among.rank == 0 else None
    if folder is not None and json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for handle, chosen in found:
        spec = extract_to_store(handle, dataset, pool=chosen, batch_size=batch_size)
        if folder is None:
            continue
        shapes, file = _save(spec, folder if save else None)
        row = {"model": shown_model(spec.model), "checkpoint": spec.checkpoint, "reads": spec.reads, "pool": spec.pool}
        rows.append({**row, "dtype": spec.dtype, "shapes": shapes, "kept": spec.folder.name, "file": file})
    if folder is None:
        return
    result = {
        "schema": SCHEMA,
        "laboratory": laboratory(names, llm[0] if len(set(llm)) == 1 else None, data),
        "data": dataset.plain(),
        "features": rows,
        "ids": dataset.ids if save else None,
        "seconds": round(time.perf_counter() - began, 2),
        "config": {
            **{"encoder": list(map(shown_model, names)), "llm": list(map(shown_model, llm)), "data": shown(data)},
            **{"n": n, "pool": pool, "llm_pool": llm_pool},
            **{"save": save, "skip_bad": skip_bad, "batch_size": batch_size, "device": where, "dtype": dtype},
        },
        "environment": environment(where),
    }
    write_json(folder / "result.json", result)
    if json_file is not None:
        write_json(json_file, result)
    _show(console(), result)
    typer.echo(f"written: {folder}")


def _save(spec: Any, folder: Path | None) -> tuple[list[list[int]], str | None]:
    """The layers' shapes, of one tensor or of each layer; and the file that they were written to, if they were."""
    from alignlab.features.files import write
    from alignlab.features.store import shards

    if folder is None:
        first = next(shards(spec))
        return [[spec.n, *x.shape[1:]] for x in (first if isinstance(first, list) else [first])], None
    name = f"{slug(spec.model)}.safetensors"
    return write(spec, folder / name), name


def _show(screen: Any, result: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{result['data']['n']:,} items of {result['data']['name']}"), title_justify="left")
    for heading in ("model", "reads", "pool", "features", "file"):
        table.add_column(heading, overflow="fold")
    for row in result["features"]:
        shapes = row["shapes"]
        told = str(shapes[0]) if len(shapes) == 1 else f"{len(shapes)} layers of {shapes[0]} to {shapes[-1]}"
        table.add_row(*map(escape, (row["model"], row["reads"], row["pool"], told, row["file"] or "-")))
    screen.print(table)
