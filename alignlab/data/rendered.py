"""Write rendered scenes with their captions as a data set on disk: the one that alignlab ships, or a larger one."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from alignlab.data.describe import describe
from alignlab.data.render import render
from alignlab.data.scenes import Scene, sample_scene
from alignlab.paths import home
from alignlab.progress import progress

TRAINING_SIZE = 96  # pixels of a training scene: what the embedded models read, and a third more
VERSION = 1  # of what a training scene looks like


def labels(scene: Scene) -> dict[str, Any]:
    """What is in a scene, in words: for probes that need labels."""
    return {
        "things": [{k: getattr(t, k) for k in ("shape", "colour", "size", "material")} for t in scene.things],
        "places": [[round(float(v), 3) for v in place] for place in scene.screen()],
        "ground": scene.ground,
        "backdrop": scene.backdrop,
        "backdrop_colour": scene.backdrop_colour,
    }


def _write_one(index: int, folder: Path, split: str, size: int) -> dict[str, Any]:
    scene = sample_scene(index, split)
    name = f"images/{index:05d}.jpg"
    Image.fromarray(render(scene, size)).save(folder / name, quality=90, subsampling=0)
    return {"image": name, "captions": list(describe(scene, index, split)), "scene": labels(scene)}


def write_scenes(folder: Path, n: int = 1024, split: str = "eval", size: int = 224) -> None:
    """Scenes 0..n-1 of a split as `folder/images/*.jpg` and `folder/captions.jsonl`.

    Raises ValueError for n < 1, and for a folder that already holds a `captions.jsonl`.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    if (folder / "captions.jsonl").exists():
        raise ValueError(f"{folder} already holds a captions.jsonl; choose another folder")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as workers, progress(f"render {split} scenes", n, "scenes") as tick:
        make = partial(_write_one, folder=folder, split=split, size=size)
        lines = []
        for line in workers.map(make, range(n), chunksize=16):
            lines.append(json.dumps(line))
            tick(len(lines))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def training_scenes(n: int) -> Path:
    """The folder of the first `n` scenes of the training split, 96 px, rendered now if they are not in the cache.

    Raises ValueError for n < 1, OSError where the cache cannot be written.
    """
    folder = home() / "scenes" / f"train-{n}-v{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
            write_scenes(unfinished, n, "train", TRAINING_SIZE)
            unfinished.replace(folder)
    return folder
