"""`alignlab doctor`: what is installed, what this machine can run, what can be reached."""

from __future__ import annotations

import typer

PACKAGES = ("torch", "transformers", "timm", "open_clip_torch", "accelerate", "safetensors", "scikit-learn", "scipy")
OPTIONAL = {
    "datasets": "hf: data sets of the hub",
    "gudhi": "topology: rtd",
    "faiss-cpu": "faiss: approximate neighbours",
    "bitsandbytes": "quant: 4- and 8-bit language models",
    "lpips": "fidelity: LPIPS",
    "torch-fidelity": "fidelity: FID",
    "jupyterlab": "notebooks",
}
# Beside the weights: activations of a batch, the data, Python and torch themselves.
OVERHEAD = 1.5e9
BYTES = {"float32": 4, "bfloat16": 2}


def doctor(
    offline: bool = typer.Option(False, "--offline", help="Do not ask whether the hub can be reached."),
) -> None:
    """Tell what is installed, what this machine can run, and whether the model hub can be reached.

    Example: alignlab doctor
    """
    from alignlab.cli.common import console
    from alignlab.models.catalogue import CATALOGUE

    out = console()
    wrong = _installed()
    memory, where = _machine()
    from rich.table import Table

    table = Table(title=f"Models, against {memory / 1e9:.1f} GB of {where}", title_justify="left")
    table.add_column("name", no_wrap=True)
    for heading in ("weights, float32", "runs in float32", "runs in bfloat16", "weights here"):
        table.add_column(heading, justify="right")
    for known in CATALOGUE:
        if known.kind != "part":
            fits = ["yes" if known.bytes_in_memory(size) + OVERHEAD < memory else "no" for size in BYTES.values()]
            here = "yes" if known.is_here() else "-"
            table.add_row(known.name, f"{known.bytes_in_memory() / 1e9:.2f} GB", *fits, here)
    out.print(table)
    out.print(
        f"runs: the weights and {OVERHEAD / 1e9:.1f} GB for everything else fit; an encoder and a language model add up."
    )
    if not offline:
        _reach()
    if wrong:
        raise RuntimeError(f"{len(wrong)} package(s) missing: {', '.join(wrong)}; install alignlab again")


def _installed() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    from alignlab import __version__

    typer.echo(f"alignlab {__version__}, Python {python_version()}")
    missing = []
    for package in PACKAGES:
        try:
            typer.echo(f"  {package} {version(package)}")
        except PackageNotFoundError:
            typer.echo(f"  {package} MISSING")
            missing.append(package)
    for package, use in OPTIONAL.items():
        extra, _, what = use.partition(": ")
        try:
            typer.echo(f"  {package} {version(package)}")
        except PackageNotFoundError:
            typer.echo(f'  {package} not installed ({what or extra}): pip install "alignlab[{extra}]"')
    return missing


def _machine() -> tuple[float, str]:
    """Print the hardware; the memory that models can use, in bytes, and what it is."""
    import os
    import shutil

    import torch

    from alignlab.paths import home
    from alignlab.provenance import environment

    free = memory_available()
    typer.echo(
        f"processor: {environment('cpu')['processor']}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    )
    typer.echo(f"memory: {free / 1e9:.1f} GB available")
    folder = home()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    typer.echo(f"cache: {folder}, {shutil.disk_usage(existing).free / 1e9:.0f} GB free")
    if not torch.cuda.is_available():
        typer.echo("GPU: none that torch can use (CUDA)")
        return free, "memory"
    room, total = torch.cuda.mem_get_info()
    typer.echo(f"GPU: {torch.cuda.get_device_name()}, {room / 1e9:.1f} of {total / 1e9:.1f} GB free")
    return float(room), "GPU memory"


def memory_available() -> float:
    """Bytes of memory that can still be used, within the limit of a container where there is one."""
    import psutil

    free = float(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit) as most, open(used) as now:
                free = min(free, int(most.read()) - int(now.read()))
        except (OSError, ValueError):  # not in a container, or "max"
            continue
    return free


def _reach() -> None:
    from alignlab.models.weights import from_hub

    try:
        with from_hub("facebook/vit-mae-base"):
            from huggingface_hub import HfApi

            HfApi().model_info("facebook/vit-mae-base", timeout=10)
        typer.echo("model hub: reached")
    except (RuntimeError, ValueError) as error:
        typer.echo(f"model hub: not reached ({str(error).rpartition(': ')[2]})")
        typer.echo("  the embedded laboratory (alignlab measure --encoder mae) needs none")
