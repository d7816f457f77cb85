"""Extraction and its store: right features, kept once, never trusted wrongly."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignlab.data import load_dataset, resize, to_tensor
from alignlab.features import extract, store
from alignlab.features.cache import entries
from alignlab.features.extraction import handle_of, spec_of


class Corners:
    """Somebody's own encoder: no base class, no torch module, two layers of the picture's corner and mean colours."""

    name, checkpoint, pools, image_size = "corners", "corners@1", ("mean", "cls"), 16

    def __init__(self) -> None:
        self.images = 0

    def layers(self, images, pool=None):
        assert images.shape[1:] == (3, 16, 16)
        self.images += len(images)
        return torch.stack([images[:, :, 0, 0], images.mean((2, 3))], 1)


class Ragged(Corners):
    name, checkpoint = "ragged", "ragged@1"

    def layers(self, images, pool=None):
        self.images += len(images)
        return [images.mean((2, 3)), images[:, :, :2, 0].flatten(1)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def data():
    return load_dataset("scenes", n=300)  # two shards


def test_features_are_the_encoders_own(home, data):
    features = extract(Corners(), data, batch_size=7)
    assert features.layers.shape == (300, 2, 3)
    assert len(features) == 300
    for i in (0, 255, 256, 299):
        image = resize(to_tensor(data[i].image)[None], 16)[0]
        torch.testing.assert_close(features.layers[i, 0], image[:, 0, 0])
        torch.testing.assert_close(features.layers[i, 1], image.mean((1, 2)))


def test_second_time_costs_no_forward_pass(home, data):
    encoder = Corners()
    first = extract(encoder, data)
    assert encoder.images == 300
    second = extract(encoder, data)
    assert encoder.images == 300
    assert torch.equal(first.layers, second.layers)


def test_layers_of_different_widths(home, data):
    encoder = Ragged()
    first = extract(encoder, data)
    again = extract(encoder, data)
    assert [tuple(t.shape) for t in first.layers] == [(300, 3), (300, 6)]
    assert all(torch.equal(a, b) for a, b in zip(first.layers, again.layers, strict=True))
    assert encoder.images == 300
    assert len(first) == 300


def test_batch_size_does_not_matter(home, data, tmp_path, monkeypatch):
    one = extract(Corners(), data, batch_size=1).layers
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "other"))
    torch.testing.assert_close(extract(Corners(), data, batch_size=300).layers, one)


def test_another_pool_data_or_checkpoint_is_another_folder(home, data):
    handle = handle_of(Corners())
    spec = spec_of(handle, data, None)
    other = Corners()
    other.checkpoint = "corners@2"
    folders = {
        spec.folder,
        spec_of(handle, data, "cls").folder,
        spec_of(handle, data.head(299), None).folder,
        spec_of(handle_of(other), data, None).folder,
    }
    assert len(folders) == 4
    renamed = Corners()
    renamed.name = "other name"
    assert spec_of(handle_of(renamed), data, None).folder.name[-20:] == spec.folder.name[-20:]


def test_where_rounding_is_coarse_batches_of_another_size_are_another_folder(home, data):
    """A cache that another batch size filled would give other scores than an empty one."""
    exact = handle_of(Corners())
    rough = replace(exact, dtype="bfloat16")
    assert len({spec_of(exact, data, None, size).folder for size in (1, 7, 64)}) == 1
    assert len({spec_of(rough, data, None, size).folder for size in (1, 7, 64)}) == 3
    encoder = Corners()
    handle = replace(handle_of(encoder), dtype="bfloat16")
    for size in (7, 64, 7):
        extract(handle, data, batch_size=size)
    assert encoder.images == 2 * len(data)
    assert sorted((entry.dtype, entry.batch, entry.complete) for entry in entries()) == [
        ("bfloat16", 7, True),
        ("bfloat16", 64, True),
    ]


def test_a_flipped_byte_is_noticed_and_only_that_shard_is_redone(home, data):
    encoder = Corners()
    first = extract(encoder, data)
    shard = spec_of(handle_of(encoder), data, None).folder / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert torch.equal(extract(encoder, data).layers, first.layers)
    assert encoder.images == 300 + 44


@pytest.mark.parametrize(
    "damage", ["manifest gone", "manifest garbage", "manifest of another", "shard gone", "shard cut"]
)
def test_nothing_damaged_is_trusted(home, data, damage):
    encoder = Corners()
    first = extract(encoder, data)
    folder = spec_of(handle_of(encoder), data, None).folder
    manifest, shard = folder / "manifest.json", folder / "shard-00000.safetensors"
    if damage == "manifest gone":
        manifest.unlink()
    elif damage == "manifest garbage":
        manifest.write_text("{")
    elif damage == "manifest of another":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "fingerprint": "sha256:0"}))
    elif damage == "shard gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:100])
    assert torch.equal(extract(encoder, data).layers, first.layers)
    assert encoder.images > 300


SLOW = """
    import time, torch
    from alignlab.data import load_dataset
    from alignlab.features import extract
    class Slow:
        name, checkpoint, pools, image_size = "corners", "corners@1", ("mean", "cls"), 16
        def layers(self, images, pool=None):
            time.sleep(0.05)
            return torch.stack([images[:, :, 0, 0], images.mean((2, 3))], 1)
    extract(Slow(), load_dataset("scenes", n=700), batch_size=16)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_run_goes_on_and_ends_the_same(home, tmp_path, monkeypatch):
    data = load_dataset("scenes", n=700)  # three shards
    encoder = Corners()
    manifest = spec_of(handle_of(encoder), data, None).folder / "manifest.json"
    for wanted in (1, 2):
        run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SLOW)])
        while not manifest.exists() or len(json.loads(manifest.read_text())["shards"]) < wanted:
            assert run.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)  # well inside the next shard
        run.send_signal(signal.SIGKILL)
        run.wait()
    resumed = extract(encoder, data).layers
    assert encoder.images < 700  # what the killed runs finished was not done again
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "undisturbed"))
    assert torch.equal(resumed, extract(Corners(), data).layers)


def test_two_at_once_share_the_work(home, data):
    encoders = [Corners(), Corners()]
    results = {}
    threads = [threading.Thread(target=lambda e=e: results.update({id(e): extract(e, data)})) for e in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(e.images for e in encoders) == 300
    a, b = results.values()
    assert torch.equal(a.layers, b.layers)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(home, data, monkeypatch):
    real = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot keep features \(No space left on device\); free some space"):
        extract(Corners(), data)
    monkeypatch.setattr(store.os, "fsync", real)
    folder = spec_of(handle_of(Corners()), data, None).folder
    assert not list(folder.iterdir())
    assert extract(Corners(), data).layers.shape == (300, 2, 3)


def test_an_unwritable_cache_is_an_error_of_one_line(tmp_path, data, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("ALIGNLAB_HOME", str(blocked))
    with pytest.raises(OSError, match="cannot keep features") as error:
        extract(Corners(), data)
    assert Path(error.value.filename).is_relative_to(blocked)


def test_wrong_arguments(home, data):
    with pytest.raises(ValueError, match="pool must be one of mean, cls for corners, got 'max'"):
        extract(Corners(), data, pool="max")
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        extract(Corners(), data, batch_size=0)
