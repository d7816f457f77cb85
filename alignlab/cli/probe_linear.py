"""`alignlab probe linear`: what is linear in the layers of a language model and an encoder."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import typer

from alignlab.files import save_figure, slug

SCHEMA = "alignlab.probe-linear/1"


def linear(
    encoder: str = typer.Option("mae", help="As measure takes it: mae, beit, vqgan, timm:NAME, a folder or a hub id."),
    llm: str = typer.Option("smollm2", help="As measure takes it: smollm2, a folder or a hub id; \\[:K], @random."),
    data: str = typer.Option("scenes", help="scenes, a folder of captioned images, a .jsonl, a .csv, or hf:NAME."),
    encoder_layer: str = typer.Option(
        "best", help="The encoder's layer: best (of R2 from captions), a number, or all, each with its own curves."
    ),
    label: list[str] = typer.Option(
        [], help="Labels to probe for (default: all that the items carry and that can be); may be repeated."
    ),
    folds: int = typer.Option(5, help="Parts of the items, each predicted by what has seen the others."),
    nulls: int = typer.Option(20, help="Shuffled pairings for the regressions; 0 for none."),
    controls: int = typer.Option(3, help="Control tasks a label: random answers by type of item."),
    pool: str | None = typer.Option(None, help="How an encoder's tokens become one vector: cls, mean or concat."),
    llm_pool: str | None = typer.Option(None, help="How a caption's tokens become one vector: mean or last."),
    n: int | None = typer.Option(None, "--n", help="Use the first N items only."),
    batch_size: int = typer.Option(64, help="Items at once in extraction: speed, and in bfloat16 the last digits."),
    seed: int = typer.Option(0, help="Of folds, shuffles and control tasks."),
    device: str = typer.Option("auto", help="auto, cpu or cuda, for the models."),
    dtype: str = typer.Option("float32", help="float32 or bfloat16, for the models; probes are float64."),
    out: Path | None = typer.Option(None, help="Folder for result.json and curves (default runs/probe-linear-TIME)."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Ridge regressions between caption and image features layer by layer, and logistic probes for what items show.

    Example: alignlab probe linear --encoder mae --data scenes --label shape --label count
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
    from alignlab.data import load_dataset
    from alignlab.features import extract
    from alignlab.features.extraction import spec_of
    from alignlab.models.registry import find_encoder, find_llm
    from alignlab.probing import linear, linear_figures
    from alignlab.probing.ridge import folds_of
    from alignlab.provenance import environment, laboratory, shown, shown_model

    check_positive({"batch-size": batch_size})
    check_whole({"controls": controls, "nulls": nulls, "seed": seed})
    if encoder_layer not in ("best", "all") and not encoder_layer.isdecimal():
        raise ValueError(f"--encoder-layer must be best, all or a layer's number from 0, got {encoder_layer!r}")
    where = pick_device(device)
    dtype = pick_dtype(dtype, where)
    dataset = load_dataset(data, n=n).check()
    folds_of(len(dataset), folds, seed)
    wanted, notes = _labels(dataset, label, folds)
    language, vision = find_llm(llm, device=where, dtype=dtype), find_encoder(encoder, device=where, dtype=dtype)
    spec_of(language, dataset, llm_pool)
    spec_of(vision, dataset, pool)
    folder = output_folder(out, "probe-linear")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")

    began = time.perf_counter()
    images = extract(vision, dataset, pool=pool, batch_size=batch_size)
    texts = extract(language, dataset, pool=llm_pool, batch_size=batch_size)
    extracted = time.perf_counter()
    x, y = linear.split(texts.layers), linear.split(images.layers)
    if len(linear.constant(x)) == len(x):
        raise ValueError(f"every layer of {texts.name} is the same for every item; the captions do not differ")
    same = linear.constant(y)
    if same:
        notes.append(
            f"{images.name}: layer(s) {', '.join(map(str, same))} are the same for every item, and predict nothing"
        )
    options: dict[str, Any] = {"folds": folds, "seed": seed}
    layers, matrix = [i for i in range(len(y)) if i not in same], None
    if encoder_layer.isdecimal():
        if int(encoder_layer) >= len(y):
            raise ValueError(f"--encoder-layer {encoder_layer}: {images.name} has the layers 0 to {len(y) - 1}")
        if int(encoder_layer) in same:
            raise ValueError(
                f"--encoder-layer {encoder_layer}: it is the same for every item; take another layer or --pool"
            )
        layers = [int(encoder_layer)]
    elif encoder_layer == "best" and len(layers) > 1:
        every = linear.regress(x, [y[i] for i in layers], **options, what="try every layer of the encoder")
        matrix = {"encoder_layers": layers, "r2": [[round(float(v), 6) for v in row] for row in every.found.r2]}
        layers = [layers[int(every.found.r2.max(0).values.argmax())]]
        notes.append(
            f"encoder layer {layers[0]} was chosen for its R2 on these items, so that there is no p; --encoder-layer all shows "
            "the others"
        )
    if not layers:
        raise ValueError(f"every layer of {images.name} is the same for every item; take another --pool")
    targets = [y[i] for i in layers]
    forth = linear.regress(x, targets, **options, nulls=nulls, what=f"{texts.name} to {images.name}")
    back = linear.regress(targets, x, **options, nulls=nulls, what=f"{images.name} to {texts.name}")
    # Shuffled pairings of the layer alone know nothing of the choice among all of them.
    fair = matrix is None
    pairs = [
        {
            "encoder_layer": layer,
            "text_to_image": forth.curve(None, place, seed, judged=fair),
            "image_to_text": back.curve(place, None, seed, judged=fair),
        }
        for place, layer in enumerate(layers)
    ]
    for pair in pairs:
        figure = linear_figures.regression(pair, texts.name, images.name, len(dataset))
        save_figure(figure, folder / f"linear-regression-{pair['encoder_layer']}.png", dpi=130)
    regressed = time.perf_counter()
    labels = []
    for one in wanted:
        sides = []
        for features, found_layers in ((texts, x), (images, y)):
            found, left_out = linear.classify(
                found_layers, one, **options, controls=controls, what=f"probe {features.name} for {one.name}"
            )
            notes += [note for note in left_out if note not in notes]
            sides.append({"model": features.name, **found.plain(seed)})
        if found.shared == 0:
            notes.append(
                f"label {one.name}: no two items share a type, so that its control task cannot be learnt by heart"
            )
        labels.append(
            {
                "label": one.name,
                "about": one.about,
                "n": found.right.shape[1],
                "classes": found.classes,
                "majority": found.majority,
                "control_majority": None if math.isnan(found.control_majority) else found.control_majority,
                "items_that_share_a_type": found.shared,
                "sides": sides,
            }
        )
        save_figure(linear_figures.label(labels[-1]), folder / f"linear-label-{slug(one.name)}.png", dpi=130)
    result = {
        "schema": SCHEMA,
        "laboratory": laboratory([encoder], llm, data),
        "data": dataset.plain(),
        "encoder": {"name": images.name, "checkpoint": images.checkpoint, "pool": images.pool},
        "llm": {"name": texts.name, "checkpoint": texts.checkpoint, "pool": texts.pool},
        "matrix": matrix,
        "pairs": pairs,
        "labels": labels,
        "notes": notes,
        "seconds": {
            "extract": round(extracted - began, 2),
            "regress": round(regressed - extracted, 2),
            "labels": round(time.perf_counter() - regressed, 2),
        },
        "config": {
            **{"encoder": shown_model(encoder), "llm": shown_model(llm), "data": shown(data)},
            **{"encoder_layer": encoder_layer, "label": label, "folds": folds, "nulls": nulls, "controls": controls},
            **{"pool": pool, "llm_pool": llm_pool, "n": n, "batch_size": batch_size, "seed": seed},
            **{"device": where, "dtype": dtype},
        },
        "environment": environment(where),
    }
    write_json(folder / "result.json", result)
    if json_file is not None:
        write_json(json_file, result)
    show(console(), result, folder)


def _labels(dataset: Any, asked: list[str], folds: int) -> tuple[list[Any], list[str]]:
    """The labels to probe for, and why others are left out; those that were asked for must be usable."""
    from alignlab.probing.labels import labels_of

    known = labels_of(dataset)
    for name in dict.fromkeys(asked):
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "they carry none"
            raise ValueError(f"--label {name}: the items of {dataset.name} do not carry it; {there}")
        known[name].usable(folds)
    if asked:
        return [known[name] for name in dict.fromkeys(asked)], []
    usable, notes = [], [] if known else [f"the items of {dataset.name} carry no labels, so that none is probed for"]
    for one in known.values():
        try:
            one.usable(folds)
            usable.append(one)
        except ValueError as error:
            notes.append(f"{error} (left out)")
    return usable, notes


def show(console: Any, result: dict[str, Any], folder: Path) -> None:
    """Print the best layer of each regression and probe; the curves are in the pictures."""
    from rich.markup import escape
    from rich.table import Table

    data, llm, encoder = result["data"], result["llm"]["name"], result["encoder"]["name"]
    table = Table(
        title=escape(f"Ridge regression on {data['name']}, {data['n']:,} items, held out"), title_justify="left"
    )
    for heading in ("from", "to", "layers", "R2", "95% interval", "shuffled", "R@1", "R@5", "R@10", "chance"):
        table.add_column(heading, justify="left" if heading in ("from", "to") else "right")
    for pair in result["pairs"]:
        for key, ends in (("text_to_image", (llm, encoder)), ("image_to_text", (encoder, llm))):
            found = pair[key]
            best = max((i for i, v in enumerate(found["r2"]) if v is not None), key=lambda i: found["r2"][i])
            shuffled = "-" if found["null_mean"] is None else f"{found['null_mean'][best]:.3f}"
            low, high = found["ci95"][best]
            where = (best, pair["encoder_layer"]) if key == "text_to_image" else (pair["encoder_layer"], best)
            recalls = [f"{one['value'][best]:.3f}" for one in found["recall"].values()]
            chances = " ".join(f"{one['chance']:.3f}" for one in found["recall"].values())
            figures = (f"{found['r2'][best]:.3f}", f"{low:.3f} to {high:.3f}", shuffled)
            table.add_row(*map(escape, ends), f"{where[0]} → {where[1]}", *figures, *recalls, chances)
    console.print(table)
    if result["labels"]:
        console.print(_label_table(result["labels"]))
    console.print(
        "layers: the best by R2 or accuracy, chosen on these items. selectivity: accuracy minus that of the control task, "
        "random answers by type of item, which can only be learnt by heart.",
        soft_wrap=True,
    )
    for note in result["notes"]:
        console.print(escape(f"note: {note}"), soft_wrap=True)
    console.print(escape(f"written: {folder}/result.json and curves"), soft_wrap=True)


def _label_table(labels: list[dict[str, Any]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Logistic probes, best layer", title_justify="left")
    for heading in (
        "label",
        "items",
        "model",
        "layer",
        "accuracy",
        "95% interval",
        "largest class",
        "control",
        "selectivity",
    ):
        table.add_column(heading, justify="left" if heading in ("label", "model") else "right")
    for one in labels:
        for side in one["sides"]:
            values = side["accuracy"]["value"]
            best = max(range(len(values)), key=lambda i: values[i])
            low, high = side["accuracy"]["ci95"][best]
            figures = (f"{values[best]:.3f}", f"{low:.3f} to {high:.3f}", f"{one['majority']:.3f}")
            rest = ("-", "-")
            if side["control"] is not None:
                rest = (f"{side['control']['value'][best]:.3f}", f"{side['selectivity']['value'][best]:+.3f}")
            table.add_row(escape(one["label"]), str(one["n"]), escape(side["model"]), str(best), *figures, *rest)
    return table
