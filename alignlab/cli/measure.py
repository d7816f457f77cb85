"""`alignlab measure`: how alike do vision encoders and a language model represent the same images and captions?"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alignlab.files import save_figure, slug

if TYPE_CHECKING:
    from alignlab.data import ImageTextDataset
    from alignlab.models.registry import Handle

SCHEMA = "alignlab.measure/1"


def measure(
    encoder: list[str] = typer.Option(
        ["mae"],
        help="mae, beit, vqgan, pca, efficientnet-lite0 (-lite1, -lite2), timm:NAME, a local folder or a hub id; "
        "may be repeated; 'all' is mae, beit and vqgan, 'prh' the 17 of the Platonic Representation Hypothesis.",
    ),
    llm: str = typer.Option(
        "smollm2",
        help="smollm2, a local folder or a hub id of a causal LM; \\[:K] after it takes its first K blocks, "
        "@random the same architecture with random weights.",
    ),
    data: str = typer.Option(
        "scenes", help="scenes, a folder of captioned images, a .jsonl, a .csv, or hf:NAME\\[@REVISION]\\[:SPLIT]."
    ),
    metric: list[str] = typer.Option(
        ["mutual_knn", "cka"],
        help="Any of docs/metrics.md: mutual_knn, cka, unbiased_cka, cknna, rsa, procrustes, ...; may be repeated.",
    ),
    k: int = typer.Option(10, help="Neighbours, for metrics that have them."),
    option: list[str] = typer.Option(
        [], help="Of one metric, as METRIC.NAME=VALUE: rsa.compare=pearson, unbiased_cka.eps=0; may be repeated."
    ),
    pool: str | None = typer.Option(None, help="How an encoder's tokens become one vector: cls, mean or concat."),
    llm_pool: str | None = typer.Option(None, help="How a caption's tokens become one vector: mean or last."),
    n: int | None = typer.Option(None, "--n", help="Use the first N items only."),
    nulls: int = typer.Option(200, help="Shuffled pairings for the null; 0 for none."),
    resamples: int = typer.Option(200, help="Halves of the items for the interval; 0 for none."),
    split_half: int = typer.Option(
        0, help="Random splits that pick the layers on one half of the items and score them on the other; 0 for none."
    ),
    approximate: list[str] = typer.Option(
        [], help="faiss (neighbours from an index) or minibatch (for unbiased_cka); the result says so. Exact without."
    ),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave unreadable items out, and list them in the result."),
    batch_size: int = typer.Option(64, help="Items at once in extraction: speed, and in bfloat16 the last digits."),
    seed: int = typer.Option(0, help="Of the shuffles and halves."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("float32", help="float32, bfloat16 or float16, for the models; scores are float32."),
    llm_dtype: str | None = typer.Option(
        None,
        help="The same for the language model alone, or 8bit or 4bit: its matrices quantised, the rest in --dtype.",
    ),
    device_map: str | None = typer.Option(
        None, help="auto: spread the language model over GPUs, memory and disk (also balanced, sequential)."
    ),
    out: Path | None = typer.Option(None, help="Folder for result.json and heatmaps (default runs/measure-TIME)."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Measure the alignment of vision encoders with a language model, over all pairs of layers.

    Example: alignlab measure --encoder mae --encoder beit --data my-photos/ --out runs/mine
    """
    from alignlab.alignment.settings import rehearse
    from alignlab.cli.common import (
        check_told_apart,
        check_writable,
        console,
        output_folder,
        pick_device,
        write_json,
    )
    from alignlab.data import load_dataset
    from alignlab.metrics.registry import check_name
    from alignlab.models.registry import expand, find_encoder, find_llm
    from alignlab.provenance import environment, laboratory, shown, shown_model
    from alignlab.training import processes

    names = expand(encoder)
    metrics = [check_name(m) for m in dict.fromkeys(metric)]
    where = pick_device(device)
    among = processes(where)
    dataset = load_dataset(data, n=n, skip_bad=skip_bad).check(skip_bad, among)
    _check_sizes(metrics, len(dataset), k, nulls, resamples, split_half, seed)
    metric_options = _metric_options(option, metrics)
    halves = bool(resamples or split_half)
    rehearse(metrics, len(dataset), k=k, halves=halves, approximate=approximate, options=metric_options)
    language = find_llm(llm, device=where, device_map=device_map, **_llm_numbers(llm_dtype or dtype, dtype))
    encoders = [find_encoder(name, device=where, dtype=dtype) for name in names]
    check_told_apart(encoders)
    if among.rank > 0:  # it takes its share of the extraction; the first aligns, writes and speaks
        _extract(language, encoders, dataset, pool, llm_pool, batch_size)
        return
    folder = output_folder(out, "measure")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")

    began = time.perf_counter()
    texts, images = _extract(language, encoders, dataset, pool, llm_pool, batch_size)
    extracted = time.perf_counter()
    from alignlab.alignment import align, plain_pair

    options: dict[str, Any] = {
        "k": k,
        "nulls": nulls,
        "resamples": resamples,
        "split_half": split_half,
        "approximate": approximate,
        "options": metric_options,
        "seed": seed,
        "device": where,
    }
    results = [(features, align(features, texts, metrics, **options)) for features in images]
    aligned = time.perf_counter()

    pairs, notes = [], []
    for features, result in results:
        notes += [note for note in result.notes if note not in notes]
        pairs += [plain_pair(features, texts, result, name) for name in metrics]
    described = {
        "schema": SCHEMA,
        "laboratory": laboratory(names, llm, data),
        "data": dataset.plain(),
        "pairs": pairs,
        "notes": notes,
        "seconds": {"extract": round(extracted - began, 2), "align": round(aligned - extracted, 2)},
        "config": {
            "encoder": list(map(shown_model, names)),
            "llm": shown_model(llm),
            "data": shown(data),
            "metric": metrics,
            "k": k,
            "option": option,
            "pool": pool,
            "llm_pool": llm_pool,
            "n": n,
            "nulls": nulls,
            "resamples": resamples,
            "split_half": split_half,
            "approximate": approximate,
            "skip_bad": skip_bad,
            "batch_size": batch_size,
            "seed": seed,
            "device": where,
            "dtype": dtype,
            "llm_dtype": llm_dtype or dtype,
            "device_map": device_map,
        },
        "environment": environment(where),
    }
    write_json(folder / "result.json", described)
    for features, result in results:
        for name in metrics:
            picture = f"heatmap-{slug(features.name)}-{slug(texts.name)}-{name}.png"
            save_figure(result.heatmap(name), folder / picture, dpi=130)
    show(console(), described, folder)
    if json_file is not None:
        write_json(json_file, described)


def _llm_numbers(llm_dtype: str, dtype: str) -> dict[str, Any]:
    """What `--llm-dtype` and `--dtype` are to `find_llm`."""
    from alignlab.models.llm_load import QUANTISED

    if dtype in QUANTISED:
        raise ValueError(f"--dtype {dtype} is for a language model alone; use --llm-dtype {dtype}")
    return {"dtype": dtype, "quantise": llm_dtype} if llm_dtype in QUANTISED else {"dtype": llm_dtype}


def _metric_options(given: list[str], metrics: list[str]) -> dict[str, dict[str, Any]]:
    """`--option METRIC.NAME=VALUE` as `align` takes it; a value that reads as a number is one."""
    options: dict[str, dict[str, Any]] = {}
    for text in given:
        parts = re.fullmatch(r"(\w+)\.(\w+)=(.+)", text)
        if parts is None:
            raise ValueError(f"--option must be METRIC.NAME=VALUE, such as rsa.compare=pearson, got {text!r}")
        metric, name, value = parts.groups()
        if metric not in metrics:
            raise ValueError(f"--option {text}: {metric} is not among --metric {', '.join(metrics)}")
        number = float(value) if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value) else value
        whole = isinstance(number, float) and re.fullmatch(r"[-+]?\d+", value)
        options.setdefault(metric, {})[name] = int(value) if whole else number
    return options


def _check_sizes(metrics: list[str], n: int, k: int, nulls: int, resamples: int, split_half: int, seed: int) -> None:
    """Say what does not fit before hours of extraction, not after."""
    from alignlab.metrics.inputs import check_count, check_k
    from alignlab.metrics.registry import REGISTRY

    check_count(n, "the data set")
    for name, value in (
        ("--nulls", nulls),
        ("--resamples", resamples),
        ("--split-half", split_half),
        ("--seed", seed),
    ):
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    if any("k" in REGISTRY[name].options for name in metrics):
        check_k(k, n)
        if (resamples or split_half) and k > n // 2 - 1:
            raise ValueError(
                f"--k {k} needs {2 * k + 2} items for halves of the data (intervals, splits), got {n}; "
                f"add items, use --k {max(n // 2 - 1, 1)} or less, or --resamples 0 without --split-half"
            )


def _extract(
    language: Handle,
    encoders: list[Handle],
    data: ImageTextDataset,
    pool: str | None,
    llm_pool: str | None,
    batch_size: int,
) -> tuple[Any, list[Any]]:
    from alignlab.features import extract
    from alignlab.features.extraction import spec_of

    spec_of(language, data, llm_pool)
    for handle in encoders:
        spec_of(handle, data, pool)  # a wrong --pool shows before anything is computed
    images = [extract(handle, data, pool=pool, batch_size=batch_size) for handle in encoders]
    return extract(language, data, pool=llm_pool, batch_size=batch_size), images


def show(console: Any, result: dict[str, Any], folder: Path) -> None:
    """Print a result as a table that a person understands; `folder` is where it was written."""
    from rich.markup import escape
    from rich.table import Table

    data, config = result["data"], result["config"]
    lab = "embedded laboratory (small models, not the paper's), " if result["laboratory"] == "embedded" else ""
    table = Table(
        title=escape(f"Alignment with {result['pairs'][0]['llm']} on {data['name']}: {lab}{data['n']:,} items"),
        title_justify="left",
    )
    wide = console.width >= 118
    for heading in ("encoder", "metric"):
        table.add_column(heading, no_wrap=True)
    for heading in ("score", "95% interval", "shuffled", *(("p", "z", "calibrated") if wide else ()), "layers"):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in result["pairs"]:
        table.add_row(*_cells(pair, wide))
    console.print(table)
    console.print(
        "score: the best of all layer pairs (encoder layer / LLM layer). shuffled: the same maximum when captions are "
        f"dealt to the wrong images ({config['nulls']} times). calibrated: 0 is shuffled, 1 is identical."
    )
    if not wide:
        console.print("On a wider terminal, and in result.json: p, z, calibrated, the null's standard deviation.")
    for note in result["notes"]:
        console.print(escape(f"note: {note}"))
    if data["skipped"]:
        console.print(escape(f"note: {len(data['skipped'])} bad item(s) left out, listed in result.json"))
    console.print(escape(f"written: {folder}/result.json and heatmaps"), soft_wrap=True)


def _cells(pair: dict[str, Any], wide: bool) -> list[str]:
    """One row of the table, of fewer columns on a narrow terminal."""
    from rich.markup import escape

    def number(key: str, digits: int) -> str:
        return "-" if pair[key] is None else f"{pair[key]:.{digits}f}"

    interval = "-" if pair["ci95"] is None else (" to " if wide else "..").join(f"{end:.3f}" for end in pair["ci95"])
    null = number("null_mean", 3)
    k = pair["params"].get("k")
    return [
        escape(pair["encoder"]),
        pair["metric"] + (f" (k={k})" if k and wide else ""),
        number("score", 3),
        interval,
        f"{null} ± {pair['null_std']:.3f}" if wide and pair["null_std"] is not None else null,
        *([number("p", 3), number("z", 1), number("calibrated", 3)] if wide else []),
        f"{pair['encoder_layer']} / {pair['llm_layer']}",
    ]
