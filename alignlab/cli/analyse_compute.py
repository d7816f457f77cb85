"""`alignlab analyse compute`: App. B.4 for any encoder and language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alignlab.analysis.words import si

if TYPE_CHECKING:
    from alignlab.analysis.compute import Counted, Sequence

SCHEMA = "alignlab.analyse-compute/1"
LABS = ("embedded", "paper")
ADAPTERS = ("layer in", "layer out")


def compute(
    encoder: str | None = typer.Option(None, help="As restore train takes it (default: the laboratory's MAE)."),
    llm: str | None = typer.Option(None, help="As restore train takes it (default: the laboratory's)."),
    lab: str = typer.Option("embedded", help="embedded, or paper: MAE-L, LLaMA-2-7B and the paper's count of tokens."),
    task_tokens: int = typer.Option(10, help="Learned tokens of a task."),
    prompt_tokens: int | None = typer.Option(
        None, help="Tokens before the first written one (default: visual, task and text tokens)."
    ),
    new_tokens: int | None = typer.Option(None, help="Tokens written (default: an image's)."),
    measured: bool | None = typer.Option(
        None, "--measured/--no-measured", help="Time the models here (default: in the embedded laboratory)."
    ),
    device: str = typer.Option("auto", help="auto, cpu or cuda; for times."),
    dtype: str = typer.Option("auto", help="auto (bfloat16 where quick), bfloat16 or float32, of the language model."),
    out: Path | None = typer.Option(None, help="Folder for result.json (default runs/analyse-compute-TIME)."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """What restoring one picture computes: operations by the paper's formula and by torch's counter, memory, time. (App. B.4)

    Weights are read only for times: operations are counted from the configuration.

    Example: alignlab analyse compute --lab paper
    """
    from alignlab import paper
    from alignlab.analysis import compute as analysis
    from alignlab.cli.common import (
        check_dtype,
        check_positive,
        check_writable,
        console,
        output_folder,
        pick_device,
        pick_dtype,
        write_json,
    )
    from alignlab.models.registry import EMBEDDED
    from alignlab.provenance import environment, laboratory, shown_model

    if lab not in LABS:
        raise ValueError(f"--lab must be one of {', '.join(LABS)}, got {lab!r}")
    check_dtype(dtype)
    check_positive({"task-tokens": task_tokens, "prompt-tokens": prompt_tokens, "new-tokens": new_tokens})
    usual = paper.MODELS if lab == "paper" else {"mae": "mae", "llm": "smollm2"}
    names = (encoder or usual["mae"], llm or usual["llm"])
    where = pick_device(device)
    timed = lab == "embedded" and names[0] in EMBEDDED and names[1] == "smollm2" if measured is None else measured
    dtype = "bfloat16" if dtype == "auto" and not timed else pick_dtype(dtype, where)
    seeing, speaking = analysis.sketch_encoder(names[0]), analysis.sketch_llm(names[1])
    folder = output_folder(out, "analyse-compute")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    typer.echo("counting", err=True)
    theirs = lab == "paper"  # its counts of tokens, which are those of its models
    words = None if theirs and names[1] == usual["llm"] else analysis.text_tokens(names[1])
    text = int(paper.COMPUTE["text_tokens"]) if words is None else words
    visual = int(paper.COMPUTE["visual_tokens"]) if theirs and names[0] == usual["mae"] else analysis.tokens_of(seeing)
    tokens = analysis.sequence(visual, task_tokens, text, prompt_tokens, new_tokens)
    counted = analysis.count_pair(seeing, speaking, tokens)
    times = _times(names, tokens, where, dtype) if timed else None
    of = [laboratory([names[0]], names[1], data) for data in ("scenes", "nocaps")]
    result = {
        "schema": SCHEMA,
        "laboratory": next((name for name in of if name != "own"), "own"),
        "models": {"encoder": shown_model(names[0]), "llm": shown_model(names[1])},
        "tokens": {
            **vars(tokens),
            "text_from": "the paper" if words is None else "the tokenizer",
            "prompt_given": prompt_tokens is not None,
        },
        **described(counted, times, dtype),
        "paper": {"published": paper.COMPUTE, "added_up": analysis.papers_numbers()},
        "mae_readings": analysis.mae_readings(seeing) if lab == "paper" and _is_mae(seeing) else None,
        "config": {
            **{"encoder": shown_model(names[0]), "llm": shown_model(names[1]), "lab": lab, "task_tokens": task_tokens},
            **{"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "measured": timed},
            **{"device": where, "dtype": dtype},
        },
        "environment": environment(where),
    }
    write_json(folder / "result.json", result)
    if json_file is not None:
        write_json(json_file, result)
    show(console(), result)
    typer.echo(f"written: {folder}/result.json")


def _is_mae(encoder: Any) -> bool:
    from alignlab.models.mae import MAEEncoder

    return isinstance(encoder, MAEEncoder)


def _times(names: tuple[str, str], tokens: Sequence, device: str, dtype: str) -> dict[str, Any]:
    from alignlab.analysis import compute as analysis
    from alignlab.models import load_llm
    from alignlab.restoration.coordinates import open_encoder
    from alignlab.restoration.estimate import matmul_rate

    typer.echo("measuring", err=True)
    seeing, speaking = open_encoder(names[0], device=device), load_llm(names[1], device=device, dtype=dtype)
    return {"seconds": analysis.measure(seeing, speaking, tokens), "rate": matmul_rate(device, dtype)}


def described(counted: Counted, times: dict[str, Any] | None, dtype: str) -> dict[str, Any]:
    """What was counted and measured, as plain values."""
    seconds = times["seconds"] if times else {}
    rows = []
    groups: dict[str, tuple[str, ...]] = {
        "encoder and decoder": ("encoder", "decoder"),
        "adapters": ADAPTERS,
        "language model": ("prefill", "decoding"),
        "all": (),
    }
    for name, part in counted.parts.items():
        rows.append(
            {"part": name, "parameters": part.parameters, "tokens": part.tokens, "formula_flop": part.formula}
            | _spent(part.counted.total, part.counted.attention, seconds.get(name), times)
        )
    for name, parts in groups.items():
        formula, flop = counted.together(*parts)
        wanted = [p for p in parts or counted.parts if p in seconds]
        spent = sum(seconds[p] for p in wanted) if wanted else None
        row: dict[str, Any] = {"part": name, "parameters": None, "tokens": None, "formula_flop": formula}
        row |= _spent(flop.total, flop.attention, spent, times)
        if times and spent:  # of what was timed: the adapters were not
            row["share_of_peak"] = counted.together(*wanted)[1].total / spent / times["rate"]
        rows.append(row)
    size, llm = 2 if dtype == "bfloat16" else 4, counted.llm
    frozen = sum(part.parameters for name, part in counted.parts.items() if name in ("encoder", "decoder"))
    memory = {
        "llm_weights": llm.parameters * size,
        "encoder_and_decoder_weights": frozen * 4,
        "adapters": sum(counted.parts[name].parameters for name in ADAPTERS) * 4,
        "kv_cache": None if llm.cached is None else llm.cached * size,
        "kv_cache_a_token": None
        if llm.cached is None
        else llm.cached * size / (counted.tokens.prompt + counted.tokens.steps),
    }
    formula, flop = counted.together("prefill", "decoding")
    return {
        "parts": rows,
        "llm": {
            "parameters": llm.parameters,
            "vocabulary_flop_a_token": llm.vocabulary.total,
            "attention_flop": flop.attention,
            "not_in_products_flop": formula - (flop.total - flop.attention),
            "formula_without_cache_flop": counted.without_cache(),
        },
        "memory_bytes": memory,
        "matmul_flop_a_second": times["rate"] if times else None,
    }


def _spent(total: float, attention: float, seconds: float | None, times: dict[str, Any] | None) -> dict[str, Any]:
    share = total / seconds / times["rate"] if times and seconds else None
    return {"torch_flop": total, "attention_flop": attention, "seconds": seconds, "share_of_peak": share}


def show(screen: Any, result: dict[str, Any]) -> None:
    """Print the table, and what is to be known of it."""
    from rich.markup import escape
    from rich.table import Table

    models, tokens, memory, llm = (result[key] for key in ("models", "tokens", "memory_bytes", "llm"))
    published, added = result["paper"]["published"], result["paper"]["added_up"]
    theirs = {
        "encoder and decoder": si(published["mae_flop"]),
        "adapters": "< 1 G",
        "language model": si(published["llm_flop"]),
        "all": si(published["flop"]),
    }
    screen.print(escape(f"One picture through {models['encoder']} and {models['llm']}, in FLOP"), style="italic")
    table = Table(padding=(0, 0), pad_edge=False)
    table.add_column("part", no_wrap=True)
    timed = result["matmul_flop_a_second"] is not None
    headings = ["parameters", "tokens", "2 x tokens\nx parameters", "torch's\ncounter", "of it\nattention"]
    for heading in headings + (["time", "share of\nthe peak"] if timed else []):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("the paper\n(its models)", justify="right", style="dim", no_wrap=True)
    for row in result["parts"]:
        cells = ["-" if row[key] is None else f"{row[key]:,}" for key in ("parameters", "tokens")]
        cells += [si(row[key]) for key in ("formula_flop", "torch_flop", "attention_flop")]
        if timed:
            cells += ["-" if row["seconds"] is None else _time(row["seconds"])]
            cells += ["-" if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}"]
        name = {"prefill": "language model, prefill", "decoding": "language model, decoding"}.get(
            row["part"], row["part"]
        )
        table.add_row(name, *cells, theirs.get(row["part"], "-"))
    screen.print(table)
    made_of = (
        f"{tokens['visual']} visual, {tokens['task']} task and {tokens['text']} text, as {tokens['text_from']} has it"
    )
    lines = [
        f"tokens: {tokens['prompt']} prefilled ({'as told' if tokens['prompt_given'] else made_of}), "
        f"{tokens['generated']} written one by one with a cache of keys and values.",
        f"torch's counter against the formula on the language model: {si(llm['attention_flop'])} of attention, which has no "
        f"parameters, are added; {si(llm['not_in_products_flop'])} fall away (the embedding table is looked up, and nothing "
        f"is projected to the vocabulary, {si(llm['vocabulary_flop_a_token'])} a token; the last written token is not read).",
        f"without a cache the formula gives {si(llm['formula_without_cache_flop'])}: every step reads all that came before.",
        f"memory: language model {_bytes(memory['llm_weights'])}, encoder and decoder "
        f"{_bytes(memory['encoder_and_decoder_weights'])}, keys and values "
        + (
            "not known"
            if memory["kv_cache"] is None
            else f"{_bytes(memory['kv_cache'])} ({_bytes(memory['kv_cache_a_token'])} a token)"
        )
        + ".",
    ]
    if timed:
        rate = result["matmul_flop_a_second"]
        lines.append(
            f"the peak: {si(rate)}FLOP a second, of {result['config']['dtype']} products of matrices measured here just now, as "
            "busy as the machine is; times are medians of three, without the adapters."
        )
    if result["config"]["lab"] == "paper":
        seen = next(row["torch_flop"] for row in result["parts"] if row["part"] == "encoder and decoder")
        lines.append(
            f"the paper rounds to {published['llm_parameters']:.0e} parameters: 2 x tokens x parameters is then "
            f"{si(added['llm_flop'])}, and with its {si(published['mae_flop'])} on MAE {si(added['flop'])} in all; with "
            f"{models['encoder']} as counted here {si(added['llm_flop'] + seen)}."
        )
        written = next(row for row in result["parts"] if row["part"] == "layer out")
        lines.append(
            f"less than 1 G on the adapters: one layer on the {written['tokens']} written tokens is "
            f"{si(written['torch_flop'] / 2)} multiply-adds, {si(written['torch_flop'])} operations."
        )
    if result["mae_readings"]:
        lines.append(f"{si(published['mae_flop'])} on MAE is none of these counts of {models['encoder']}:")
        lines += [f"  {what}: {si(flop)}" for what, flop in result["mae_readings"].items()]
    for line in lines:
        screen.print(escape(line), soft_wrap=True)


def _bytes(x: float) -> str:
    return f"{si(x)}B"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
