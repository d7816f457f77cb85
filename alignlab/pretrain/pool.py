"""The pictures that the embedded vision models learn from: rendered training scenes and crops of photographs.

A pool is made once for each source and kept in the cache folder, so that the models trained one after another share
the rendering; a batch then costs a memory map's slices. Of a folder of pictures every fifth item (index a multiple
of 5) is held out and never enters the pool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignlab.data import ImageTextDataset, load_dataset
from alignlab.data.render import render
from alignlab.data.scenes import sample_scene
from alignlab.files import whole
from alignlab.paths import home
from alignlab.progress import progress

HOLD_OUT = 5


@dataclass(frozen=True)
class PoolConfig:
    """How many pictures a source gives, and how they are cut: squares of `least`..1 of the short side."""

    size: int = 72
    count: int = 12_000
    least_scene: float = 0.75
    least_photo: float = 0.35
    seed: int = 0


def _crop(image: Image.Image, least: float, size: int, rng: np.random.Generator) -> np.ndarray:
    short = min(image.size)
    side = short * float(rng.uniform(least, 1))
    left, top = (float(rng.uniform(0, length - side)) for length in image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _scene_crop(index: int, config: PoolConfig) -> np.ndarray:
    rendered = config.size * 4 // 3  # drawn so large that no crop is enlarged
    picture = Image.fromarray(render(sample_scene(index, split="train"), rendered, samples=2))
    return _crop(picture, config.least_scene, config.size, np.random.default_rng([config.seed, index]))


def _photo_crops(index: int, data: ImageTextDataset, times: int, config: PoolConfig) -> np.ndarray:
    picture = data[index].image
    rng = np.random.default_rng([config.seed, index])
    return np.stack([_crop(picture, config.least_photo, config.size, rng) for _ in range(times)])


def held_out(data: ImageTextDataset) -> list[int]:
    """Indices of the items that training never sees."""
    return [i for i in range(len(data)) if i % HOLD_OUT == 0]


def _fill(path: Path, parts: Iterator[np.ndarray], config: PoolConfig, label: str) -> None:
    count = config.count
    shape = (count, config.size, config.size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    refused = "cannot keep the training pictures", "free some space or point ALIGNLAB_HOME elsewhere"
    # Written, not mapped: a full disk is then an error that can be told, not a signal that kills.
    with whole(path, *refused) as unfinished, open(unfinished, "wb") as out, progress(label, count, "pictures") as tick:
        np.lib.format.write_array_header_1_0(out, header)
        at = 0
        for part in parts:
            part = part.reshape(-1, *shape[1:])[: count - at]
            out.write(np.ascontiguousarray(part).tobytes())
            at += len(part)
            tick(at)


def open_pool(source: str, config: PoolConfig) -> np.ndarray:
    """The pool of one source, uint8 [count, size, size, 3], made now if it is not there yet."""
    if source == "scenes":
        key, data = "scenes-v1", None
    else:
        data = load_dataset(source, captions=False)
        key = f"{data.name}-{data.fingerprint}"
    digest = hashlib.sha256(f"{key}{config}".encode()).hexdigest()[:16]
    path = home() / "pretrain" / f"pool-{digest}.npy"
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            _make(path, data, config)
    return np.load(path, mmap_mode="r")


def _make(path: Path, data: ImageTextDataset | None, config: PoolConfig) -> None:
    workers = ProcessPoolExecutor()
    try:
        if data is None:
            parts = workers.map(partial(_scene_crop, config=config), range(config.count), chunksize=64)
        else:
            indices = sorted(set(range(len(data))) - set(held_out(data)))
            times = -(-config.count // len(indices))
            make = partial(_photo_crops, data=data, times=times, config=config)
            parts = workers.map(make, indices, chunksize=8)
        _fill(path, parts, config, "render training scenes" if data is None else f"crop {data.name}")
    finally:
        workers.shutdown(cancel_futures=True)


def batch(pools: list[np.ndarray], size: int, pixels: int, step: int, seed: int) -> Tensor:
    """Batch number `step`: float32 [size, 3, pixels, pixels] in 0..1, equal shares of every pool, in random order.

    Depends on nothing but its arguments, so that a resumed training sees what an undisturbed one would have seen.
    """
    rng = np.random.default_rng([seed, step])
    owner = np.arange(size) % len(pools)
    pictures = []
    for pool_index in owner:
        pool = pools[pool_index]
        top, left = rng.integers(0, pool.shape[1] - pixels + 1, size=2)
        picture = pool[rng.integers(len(pool)), top : top + pixels, left : left + pixels]
        pictures.append(picture[:, ::-1] if rng.random() < 0.5 else picture)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
