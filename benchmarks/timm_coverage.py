"""Which of timm's models `timm:NAME` can read: the smallest model of every family, with random weights.

    python benchmarks/timm_coverage.py [--out benchmarks/results/timm_coverage.json] [--only WORD]

A family is a module of timm and the first word of the names in it (`byobnet/repvgg`, `byobnet/mobileone`, ...), timm's
models for its own tests aside. Its
smallest model by number of parameters, counted on the meta device, is built with weights from seed 0 and given two images
at its own size. It is read where its layers and its tokens come back finite and one an image; it agrees with timm where the
mean over the last of timm's own `forward_intermediates(norm=False)` is the mean of one of the layers.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from alignlab.models.encoder import prepare
from alignlab.models.timm_encoder import TimmEncoder, load_timm
from alignlab.provenance import environment

HERE = Path(__file__).parent


def families(word: str = "") -> dict[str, dict[str, int]]:
    """Family -> name -> number of parameters, of the families and names that `word` is in."""
    found: dict[str, dict[str, int]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            family = f"{module}/{re.sub(r'[0-9].*', '', name.split('_')[0])}"
            if word in f"{family} {name}" and not name.startswith("test_"):
                with torch.device("meta"):
                    model = timm.create_model(name)
                found.setdefault(family, {})[name] = sum(p.numel() for p in model.parameters())
    return found


@torch.no_grad()
def last_of_timm(encoder: TimmEncoder, images: Tensor) -> Tensor:
    """Timm's own reading of the last stage or block, averaged over space: `[B, D]`."""
    pixels = prepare(images, encoder.image_size, encoder.mean, encoder.std, next(encoder.model.parameters()))
    last = encoder.model.forward_intermediates(pixels, norm=False, intermediates_only=True)[-1]
    while not isinstance(last, Tensor):
        last = last[-1]
    return last.mean((2, 3)) if last.ndim == 4 else last.mean(1)  # timm's maps are [B, D, h, w]


def agrees(encoder: TimmEncoder, images: Tensor, layers: list[Tensor]) -> bool:
    try:
        last = last_of_timm(encoder, images)
    except Exception:  # whatever timm's own reading breaks on is not this survey's to report
        return False
    scale = last.abs().max() + 1e-6
    return any(x.shape == last.shape and (x - last).abs().max() < 1e-3 * scale for x in layers)


def survey(name: str) -> dict[str, Any]:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    try:
        encoder = load_timm(f"timm:{name}@random")
        layers, tokens = list(_layers(encoder, images)), encoder.encode(images)
        if not all(x.isfinite().all() and len(x) == 2 for x in (*layers, tokens)):
            raise ValueError("a layer is not finite, or not one an image")
        if tuple(x.shape[1] for x in layers) != encoder.widths:
            raise ValueError("two images have layers of other widths than one")
    except Exception as error:  # the survey reports what a user would meet
        expected = isinstance(error, ValueError)
        return {"read": False, "clear": expected, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return {
        "read": True,
        "agrees": agrees(encoder, images, layers),
        "layers": encoder.num_layers,
        "pools": list(encoder.pools),
        "widths": sorted(set(encoder.widths)),
    }


def _layers(encoder: TimmEncoder, images: Tensor) -> list[Tensor]:
    layers = encoder.layers(images, pool="mean")
    return list(layers.unbind(1)) if isinstance(layers, Tensor) else layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "timm_coverage.json")
    parser.add_argument("--only", default="", metavar="WORD", help="families and names with this in them")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    start, results = time.perf_counter(), {}
    known = families(args.only)
    for family, sizes in known.items():
        name = min(sizes, key=lambda n: (sizes[n], n))
        results[family] = {"model": name, "parameters": sizes[name], **survey(name)}
        if not results[family]["read"]:
            print(f"{family}: {name}: {results[family]['error']}", flush=True)
    read = [r for r in results.values() if r["read"]]
    summary = {
        "timm": timm.__version__,
        "models": sum(map(len, known.values())),
        "families": len(results),
        "read": len(read),
        "agree_with_timm": sum(r["agrees"] for r in read),
        "not_read": [r["model"] for r in results.values() if not r["read"]],
        "differ": [r["model"] for r in read if not r["agrees"]],
    }
    print(
        f"{summary['read']} of {summary['families']} families of timm {summary['timm']} ({summary['models']} models) are read; "
        f"{summary['agree_with_timm']} agree with timm's own reading of the last block"
    )
    print(f"not read: {', '.join(summary['not_read']) or 'none'}")
    print(f"read otherwise than timm does: {', '.join(summary['differ']) or 'none'}")
    document = {"summary": summary, "families": results, "seconds": time.perf_counter() - start}
    described = environment("cpu")
    described.pop("command")  # it is written down above
    args.out.write_text(json.dumps(document | {"environment": described}, indent=1) + "\n")


if __name__ == "__main__":
    main()
