"""Features larger than memory: the same scores, a block of rows at a time, and never all of them at once."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import alignlab as al
from alignlab.alignment import align, engine
from alignlab.alignment.draws import Draws
from alignlab.metrics.preparation import prepare, prepared, select

ROOT = Path(__file__).resolve().parents[2]
N = 640
ARRAYS = ("matrix", "chance", "null_max", "subset_max", "held_out", "held_out_null")


@pytest.fixture
def blockwise(monkeypatch):
    """Nothing fits into memory, and a block is 100 rows."""
    monkeypatch.setattr(engine, "BYTES_AT_ONCE", 1)
    monkeypatch.setattr("alignlab.metrics.inputs.ROWS_AT_ONCE", 100)
    monkeypatch.setattr("alignlab.metrics.preparation.VALUES_AT_ONCE", 1000)
    monkeypatch.setattr("alignlab.alignment.graph_pairs.TABLE_BYTES", 0)


def pair(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """`[N, 3, 8]` and `[N, 1, 12]`, related."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(N, 6))
    x, y = (shared @ rng.normal(size=(6, w)) + rng.normal(size=(N, w)) for w in (24, 12))
    return x.reshape(N, 3, 8).astype(dtype), y[:, None].astype(dtype)


def mapped(folder: Path, name: str, array: np.ndarray, mode: str = "r") -> np.ndarray:
    np.save(folder / f"{name}.npy", array)
    return np.load(folder / f"{name}.npy", mmap_mode=mode)


def assert_same(a: al.Alignment, b: al.Alignment) -> None:
    assert a.notes == b.notes
    for name in a.metrics:
        for array in ARRAYS:
            one, other = (getattr(r.metrics[name], array) for r in (a, b))
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7, err_msg=f"{name} {array}")


STREAMED = ["cka", "unbiased_cka", "mutual_knn", "lcs_knn"]
HELD = ["procrustes", "gulp", "eigenspace_overlap", "svcca"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_mapped_features_score_what_those_in_memory_do(dtype, tmp_path, request):
    x, y = pair(dtype)
    options = {"nulls": 3, "resamples": 3, "split_half": 1, "seed": 5}
    whole = align(x, y, STREAMED, **options)
    request.getfixturevalue("blockwise")
    assert_same(whole, align(mapped(tmp_path, "x", x), mapped(tmp_path, "y", y), STREAMED, **options))


def test_so_do_lists_slices_tensors_and_metrics_that_need_whole_layers(tmp_path, request):
    x, y = pair("float32")
    options = {"nulls": 2, "resamples": 2, "approximate": "minibatch"}
    names = ["cka", "unbiased_cka", *HELD]
    whole = align(x[::2], [y[::2, 0], y[::2, 0, :5]], names, **options)
    request.getfixturevalue("blockwise")
    on_disk = mapped(tmp_path, "y", y)[::2, 0]
    parts = align(torch.from_numpy(x)[::2], [on_disk, on_disk[:, :5]], names, **options)
    assert_same(whole, parts)


def test_ties_are_broken_alike(tmp_path, request):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(4, 8))[rng.integers(0, 4, size=300)][:, None] for _ in "xy")
    whole = align(x, y, ["mutual_knn"], nulls=3, resamples=0)
    assert whole.notes
    request.getfixturevalue("blockwise")
    assert_same(whole, align(mapped(tmp_path, "x", x), y, ["mutual_knn"], nulls=3, resamples=0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_on_disk_are_refused_by_item(bad, blockwise, tmp_path):
    x, y = pair("float32")
    y[437, 0, 3] = bad
    with pytest.raises(ValueError, match="y must be finite, but item 437 holds nan or inf"):
        align(x, mapped(tmp_path, "y", y), ["cka"])
    with pytest.raises(ValueError, match=r"y\[1\] must be finite, but item 437 holds"):
        align(x, [x[:, 0], mapped(tmp_path, "y", y)[:, 0]], ["cka"])


def test_a_row_of_zeros_and_a_constant_layer_are_seen_on_disk(blockwise, tmp_path):
    x, y = pair("float32")
    y[:, 0] = 3.0
    result = align(x, mapped(tmp_path, "y", y), ["cka"], nulls=2, resamples=2)
    assert result.best("cka").score == 0
    x[555, 1] = 0
    with pytest.raises(ValueError, match=r"x, layer 1, has a row of zeros \(item 555\)"):
        align(mapped(tmp_path, "x", x), x, ["cka"])


@pytest.mark.parametrize("name", ["procrustes", "gulp"])
def test_what_needs_whole_layers_that_no_memory_holds_is_refused(name, blockwise, monkeypatch):
    monkeypatch.setattr(engine, "memory", lambda: 1000)
    with pytest.raises(
        ValueError, match=rf"{name} holds the features of all items and needs about .* GB with N={N}; .* cka"
    ):
        align(*pair("float32"), [name], nulls=0, resamples=0)
    align(*pair("float32"), ["cka", "mutual_knn"], nulls=1, resamples=1)


def test_what_was_written_into_a_private_mapping_is_not_lost(blockwise, tmp_path):
    """Giving its pages back would read the file again."""
    x, y = pair("float32")
    private = mapped(tmp_path, "x", x, mode="c")
    private[:] = y[:, :, :8]
    score = align(private, y[:, :, :8], ["cka"], nulls=0, resamples=0).best("cka").score
    assert score == pytest.approx(1)
    assert np.array_equal(private, np.broadcast_to(y[:, :, :8], private.shape))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60), st.data())
def test_selection_is_that_of_sorting(values, data):
    index = data.draw(st.integers(0, len(values) - 1))
    for dtype in (torch.float32, torch.float64):
        t = torch.tensor(values, dtype=dtype)
        assert select(lambda t=t: t.split(7), index, dtype) == float(t.abs().sort().values[index])


def test_prepared_rows_are_those_of_prepare(tmp_path):
    x = pair("float32")[0]
    lazy = prepared(mapped(tmp_path, "x", x), 0.9, "x", "cpu")
    expected = torch.from_numpy(prepare(x, 0.9))
    items = torch.tensor([5, 3, 600, 3])
    assert torch.equal(lazy.whole(), expected)
    assert torch.equal(lazy.layer(1).some(items)[1:], expected[items[1:], 1])
    assert torch.equal(lazy.some(items).some(torch.tensor([2, 0])).whole(), expected[[600, 5]])
    limit = np.sort(np.abs(x), axis=None)[int(0.9 * x.size)]
    assert lazy.limit == limit


def test_draws_made_anew_are_those_of_one_stream():
    rng = np.random.default_rng(3)
    orders = [rng.permutation(20) for _ in range(7)]
    draws = Draws(20, 3, 2, 1, 3, "cpu")
    for _ in range(2):
        assert [d.tolist() for d in draws.perms] == [o.tolist() for o in orders[:3]]
        assert [d.tolist() for d in draws.subsets] == [o[:10].tolist() for o in orders[3:5]]
        assert [d.tolist() for d in draws.halves] == [orders[5][:10].tolist(), orders[5][10:].tolist()]
        assert [len(c) for c in draws.perms.chunks(2)] == [2, 1]


# --- how much memory ---

WITHIN = """
    import resource, sys
    import numpy as np
    from alignlab.alignment import align, engine

    folder, fits = sys.argv[1:]
    if fits == "no":
        engine.BYTES_AT_ONCE = 1_000_000
    x, y = (np.load(f"{folder}/{side}.npy", mmap_mode="r") for side in "xy")
    align(x[:9000], y[:9000], ["cka"], nulls=1, resamples=1)  # what torch takes once
    with open("/proc/self/status") as status:
        taken = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (taken + int(1.3 * x.nbytes), -1))
    align(x, y, ["cka"], nulls=2, resamples=2, split_half=1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit counts as Linux does it")
def test_memory_stays_below_a_copy_of_both_sides(tmp_path):
    """1.3 times one side, with all that is kept of each item: what is mapped of the files is not this process' own."""
    rng = np.random.default_rng(0)
    for side in "xy":
        np.save(tmp_path / f"{side}.npy", rng.standard_normal((800_000, 1, 32), dtype=np.float32))  # 102 MB
    done = {}
    for fits in ("no", "yes"):
        command = [sys.executable, "-c", textwrap.dedent(WITHIN), str(tmp_path), fits]
        done[fits] = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done["no"].returncode == 0, done["no"].stderr[-2000:]
    assert done["yes"].returncode != 0  # copies are refused, so that the limit does see them
    assert "allocate" in done["yes"].stderr


def test_the_benchmark_runs(tmp_path):
    out = tmp_path / "large.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "large.py"), "--small", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["cases"]
    assert [row["case"] for row in rows] == ["extract", "extract_hf", "cka", "mutual_knn"]
    assert all(0.1 < row["peak_GB"] < 4 for row in rows)


# --- features in a file ---


class Tones:
    name, checkpoint, pools, image_size = "tones", "tones@1", ("mean",), 16

    def layers(self, images, pool=None):
        return torch.stack([images[:, :, 0, 0], images.mean((2, 3))], 1)


class Ragged(Tones):
    name, checkpoint = "ragged", "ragged@1"

    def layers(self, images, pool=None):
        return [images.mean((2, 3)), images[:, :, :2, 0].flatten(1)]


class Coarse(Tones):
    name, checkpoint = "coarse", "coarse@1"

    def layers(self, images, pool=None):
        return super().layers(images, pool).bfloat16()


def test_bfloat16_lies_in_a_file_as_float32(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    data = al.load_dataset("scenes", n=20)
    on_disk = al.extract(Coarse(), data, file=tmp_path / "features.safetensors")
    np.testing.assert_array_equal(on_disk.layers, al.extract(Coarse(), data).layers.float())


def test_several_may_write_the_same_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    data, file = al.load_dataset("scenes", n=300), tmp_path / "features.safetensors"
    expected = al.extract(Tones(), data).layers.numpy()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: np.array(al.extract(Tones(), data, file=file).layers), range(16)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("encoder", [Tones(), Ragged()])
def test_extracted_features_lie_in_a_file(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    data = al.load_dataset("scenes", n=300)  # two shards
    file = tmp_path / "features.safetensors"
    on_disk, in_memory = al.extract(encoder, data, file=file), al.extract(encoder, data)
    again = al.open_features(file)
    assert len(on_disk) == len(again) == 300
    assert (again.name, again.checkpoint, again.pool) == (encoder.name, encoder.checkpoint, "mean")
    split = [in_memory.layers] if isinstance(in_memory.layers, torch.Tensor) else in_memory.layers
    for features in (on_disk, again):
        arrays = features.layers if isinstance(features.layers, list) else [features.layers]
        assert all(isinstance(a, np.memmap) for a in arrays)
        for a, t in zip(arrays, split, strict=True):
            np.testing.assert_array_equal(a, t)
    for a, t in zip(load_file(file).values(), split, strict=True):  # safetensors reads it too
        assert torch.equal(a, t)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [file.name]
    options = {"nulls": 2, "resamples": 2}
    assert_same(align(on_disk, in_memory, ["cka"], **options), align(in_memory, in_memory, ["cka"], **options))


def test_files_that_hold_no_features_are_refused(tmp_path):
    file = tmp_path / "no.safetensors"
    for content in (b"", b"\x00" * 100, b"\xff" * 100, b"\x02" + b"\x00" * 7 + b"{}", b"\x02" + b"\x00" * 7 + b"[]"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"no\.safetensors: no features as alignlab extract --save writes them"):
            al.open_features(file)
    for entry in (
        {"dtype": "F32", "shape": [2**70, 1, 1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1, 1, 1], "data_offsets": [2**70, 2**70 + 4]},
        {"dtype": "F32", "shape": [1, 1, 1], "data_offsets": [-8, -4]},
    ):
        header = json.dumps({"layers": entry}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00" * 4)
        with pytest.raises(ValueError, match=r"no\.safetensors: no features as alignlab extract --save writes them"):
            al.open_features(file)
    with pytest.raises(FileNotFoundError):
        al.open_features(tmp_path / "nowhere")
