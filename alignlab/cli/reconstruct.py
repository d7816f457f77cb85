"""`alignlab reconstruct`: what an encoder and its decoder keep of an image."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SCHEMA = "alignlab.reconstruct/1"


def reconstruct(
    encoder: list[str] = typer.Option(
        ["mae"],
        help="mae, beit, vqgan, pca, a local folder or file, or a hub id of a model with a decoder; may be repeated.",
    ),
    decoder: str | None = typer.Option(
        None,
        help="Another decoder behind a MAE: a folder of `restore decoder`, or a hub id such as bytetriper/vit-mae-r.",
    ),
    data: str = typer.Option("scenes", help="Images, as measure takes them; captions are not read."),
    n: int | None = typer.Option(None, "--n", help="Use the first N images only."),
    lpips: str = typer.Option("vgg", help="LPIPS' backbone: vgg or alex; none for no LPIPS."),
    features: list[str] = typer.Option(
        ["inception", "efficientnet-lite0"],
        help="Networks for the distance of the two sets: inception gives FID, an encoder's name FD(name); none for none.",
    ),
    skip_bad: bool = typer.Option(
        False, "--skip-bad", help="Leave unreadable images out, and list them in the result."
    ),
    batch_size: int = typer.Option(64, help="Images at once: speed, and in bfloat16 the last digits."),
    seed: int = typer.Option(0, help="Of the bootstrap intervals."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dtype: str = typer.Option("float32", help="float32, bfloat16 or float16, for the models."),
    out: Path | None = typer.Option(None, help="Folder for result.json and pictures (default runs/reconstruct-TIME)."),
    json_file: Path | None = typer.Option(None, "--json", help="Write the result to this file too."),
) -> None:
    """Encode and decode images: PSNR, SSIM, L1, LPIPS, the distance of the sets, and a grid of pictures.

    What needs weights that are not here (LPIPS, FID) is left out with the reason; nothing stands in for it.

    Example: alignlab reconstruct --encoder mae --encoder vqgan --data my-photos/
    """
    from alignlab import paper
    from alignlab.cli.common import check_writable, console, output_folder, pick_device, write_json
    from alignlab.data import load_dataset
    from alignlab.files import labels
    from alignlab.models.registry import expand, load_encoder
    from alignlab.provenance import environment, laboratory, shown, shown_model
    from alignlab.restoration.perceptual import BACKBONES
    from alignlab.restoration.pictures import save_grid
    from alignlab.restoration.reconstruction import FIDELITY_K
    from alignlab.restoration.reconstruction import reconstruct as measure

    if batch_size < 1:
        raise ValueError(f"--batch-size must be 1 or more, got {batch_size}")
    if lpips not in (*BACKBONES, "none"):
        raise ValueError(f"--lpips must be one of {', '.join(BACKBONES)}, none, got {lpips!r}")
    where = pick_device(device)
    dataset = load_dataset(data, n=n, skip_bad=skip_bad, captions=False).check(skip_bad=skip_bad)
    names = expand(encoder)
    encoders = [load_encoder(name, device=where, dtype=dtype, decoder=decoder) for name in names]
    for loaded in encoders:
        if not hasattr(loaded, "decode"):
            raise ValueError(
                f"{loaded.name} has no decoder; --encoder takes a MAE, a BEiT with its dVAE or a VQGAN here"
            )
    folder = output_folder(out, "reconstruct")
    if json_file is not None:
        check_writable(json_file.absolute().parent, "--json")
    distance, networks, left_out = _networks(lpips, features, where)
    if len(dataset) <= FIDELITY_K:
        reason = f"it compares sets of {FIDELITY_K + 1} images or more, got {len(dataset)}"
        left_out += [{"metric": called, "reason": reason} for called in networks]
        networks = {}

    results: list[dict[str, Any]] = []
    for loaded in encoders:
        began = time.perf_counter()
        done = measure(loaded, dataset, lpips=distance, features=networks, batch_size=batch_size, seed=seed)
        seconds = round(time.perf_counter() - began, 2)
        truth, made = done.shown
        picture = folder / f"reconstruction-{labels([*(row['encoder'] for row in results), done.encoder])[-1]}.jpg"
        rows = {"original": truth, "reconstruction": made, "|difference| x 4": ((truth - made).abs() * 4).clamp(0, 1)}
        save_grid(rows, picture, f"{done.encoder}, {done.size} px")
        results.append(
            {
                "encoder": done.encoder,
                "picture": picture.name,
                "checkpoint": done.checkpoint,
                "decoder_checkpoint": done.decoder_checkpoint,
                "size": done.size,
                **{name: getattr(done, name).plain() for name in ("psnr", "ssim", "l1")},
                "lpips": done.lpips and done.lpips.plain(),
                "sets": [asdict(one) for one in done.sets],
                "seconds": seconds,
            }
        )
    whose = laboratory(names, None, data)
    described = {
        "schema": SCHEMA,
        "laboratory": whose,
        **({"paper": paper.TABLE1} if whose == "paper" else {}),
        "data": dataset.plain(),
        "results": results,
        "lpips_net": lpips if distance else None,
        "left_out": left_out,
        "config": {
            "encoder": list(map(shown_model, names)),
            "decoder": decoder and shown_model(decoder),
            "data": shown(data),
            "n": n,
            "lpips": lpips,
            "features": features,
            "skip_bad": skip_bad,
            "batch_size": batch_size,
            "seed": seed,
            "device": where,
            "dtype": dtype,
        },
        "environment": environment(where),
    }
    write_json(folder / "result.json", described)
    if json_file is not None:
        write_json(json_file, described)
    show(console(), described, folder)


def _networks(
    lpips: str, features: list[str], device: str
) -> tuple[Callable[[Tensor, Tensor], Tensor] | None, dict[str, Callable[[Tensor], Tensor]], list[dict[str, str]]]:
    """LPIPS, the networks by the name of their distance, and what cannot be had here with the reason."""
    import torch

    from alignlab.models.registry import load_encoder
    from alignlab.restoration.inception import load_inception
    from alignlab.restoration.perceptual import load_lpips

    left_out = []
    distance = None
    if lpips != "none":
        try:
            distance = load_lpips(lpips, device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            left_out.append({"metric": "LPIPS", "reason": str(error)})
    networks: dict[str, Callable[[Tensor], Tensor]] = {}
    for name in dict.fromkeys(features):
        if name == "none":
            continue
        called = "FID" if name == "inception" else f"FD({name})"
        try:
            networks[called] = (
                load_inception(device) if name == "inception" else _last_layer(load_encoder(name, device=device))
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            left_out.append({"metric": called, "reason": str(error)})
    return distance, networks, left_out


def _last_layer(encoder: Any) -> Callable[[Tensor], Tensor]:
    """Images `[B, 3, H, W]` -> the pooled last layer `[B, D]`."""

    def features(images: Tensor) -> Tensor:
        layers = encoder.layers(images)
        return layers[-1] if isinstance(layers, list) else layers[:, -1]

    return features


def show(console: Any, result: dict[str, Any], folder: Path) -> None:
    """Print a result as a table; `folder` is where it was written."""
    from rich.markup import escape
    from rich.table import Table

    data = result["data"]
    lab = "embedded laboratory (small models, not the paper's), " if result["laboratory"] == "embedded" else ""
    table = Table(title=escape(f"Reconstruction of {data['name']}: {lab}{data['n']:,} images"), title_justify="left")
    table.add_column("encoder", no_wrap=True)
    lpips = [f"LPIPS ({result['lpips_net']})"] if result["lpips_net"] else []
    sets = [one["name"] for one in result["results"][0]["sets"]]
    for heading in ("size", "PSNR (dB)", "95% interval", "SSIM", "L1", *lpips):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in sets:
        table.add_column(name, justify="right")
        table.add_column("precision", justify="right")
        table.add_column("recall", justify="right")
    for row in result["results"]:
        cells = [f"{row['size']}", *_psnr(row["psnr"]), f"{row['ssim']['mean']:.3f}", f"{row['l1']['mean']:.4f}"]
        cells += [f"{row['lpips']['mean']:.3f}"] if lpips else []
        for one in row["sets"]:
            cells += [f"{one['distance']:.3g}", f"{one['precision']:.3f}", f"{one['recall']:.3f}"]
        table.add_row(escape(row["encoder"]), *cells)
    console.print(table)
    if "paper" in result:
        rows = (f"{model}: " + ", ".join(f"{k} {v}" for k, v in row.items()) for model, row in result["paper"].items())
        console.print(escape(f"the paper's Table 1 (ImageNet's validation images): {'; '.join(rows)}"), soft_wrap=True)
    for missing in result["left_out"]:
        console.print(escape(f"left out: {missing['metric']}: {missing['reason']}"), soft_wrap=True)
    infinite = sum(row["psnr"]["infinite"] for row in result["results"])
    if infinite:
        console.print(f"note: {infinite} reconstruction(s) were identical to the original; PSNR's mean leaves them out")
    for one in result["results"][0]["sets"]:
        if data["n"] <= one["width"]:
            console.print(
                f"note: {one['name']} of {data['n']} images in {one['width']} dimensions is far from its limit"
            )
    console.print(escape(f"written: {folder}/result.json and pictures"), soft_wrap=True)


def _psnr(psnr: dict[str, Any]) -> tuple[str, str]:
    if psnr["mean"] is None:
        return "inf", "-"
    return f"{psnr['mean']:.2f}", " to ".join(f"{end:.2f}" for end in psnr["ci95"])
