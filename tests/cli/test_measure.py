"""`alignlab measure` as a user runs it: the result file, the table, the pictures, and one clear line for bad input."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignlab.alignment import align
from alignlab.cli import run
from alignlab.data import load_dataset
from alignlab.features import extract
from alignlab.models import load_encoder, load_llm

FAST = ["--nulls", "19", "--resamples", "10"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("my") / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for i in range(40):
        pixels = rng.integers(0, 255, size=(6, 5, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((50, 60), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"picture number {i} of something"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def command(pictures, small_llm, small_mae, tmp_path):
    def build(*more: str, data: Path | str = pictures, encoder: Path | str = small_mae) -> list[str]:
        where = [
            "--data",
            str(data),
            "--encoder",
            str(encoder),
            "--llm",
            str(small_llm),
            "--out",
            str(tmp_path / "out"),
        ]
        return ["measure", *where, *FAST, *more]

    return build


def test_result_json_has_everything_and_the_right_numbers(command, tmp_path, pictures, small_llm, small_mae, capsys):
    assert run(command("--k", "5", "--json", str(tmp_path / "copy.json"))) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result == json.loads((tmp_path / "copy.json").read_text())
    assert result["schema"] == "alignlab.measure/1"
    assert result["laboratory"] == "own"
    data = load_dataset(pictures)
    assert result["data"] == {"name": "pictures", "n": 40, "fingerprint": data.fingerprint, "skipped": []}
    fx, fy = extract(load_encoder(str(small_mae)), data), extract(load_llm(str(small_llm)), data)
    expected = align(fx, fy, k=5, nulls=19, resamples=10)
    assert [p["metric"] for p in result["pairs"]] == ["mutual_knn", "cka"]
    for pair in result["pairs"]:
        best = expected.best(pair["metric"])
        assert pair["encoder"] == "small-mae"
        assert pair["checkpoint"].startswith("small-mae@sha256:")
        assert pair["llm"] == "small-llm"
        assert pair["llm_checkpoint"].startswith("small-llm@sha256:")
        assert pair["params"] == ({"k": 5, "q": 0.95} if pair["metric"] == "mutual_knn" else {"q": 0.95})
        assert pair["score"] == pytest.approx(best.score)
        assert (pair["encoder_layer"], pair["llm_layer"]) == (best.x_layer, best.y_layer)
        assert pair["last_layer_score"] == pytest.approx(best.last_layer_score)
        assert pair["ci95"] == pytest.approx(best.ci95)
        for key in ("chance", "null_mean", "null_std", "z", "p", "calibrated"):
            assert pair[key] == pytest.approx(getattr(best, key)), key
        assert np.array(pair["matrix"]).shape == (3, 3)
    assert set(result["seconds"]) == {"extract", "align"}
    assert result["environment"]["torch"]
    assert result["config"]["k"] == 5
    out = capsys.readouterr().out
    assert "small-mae" in out
    assert "shuffled" in out
    assert "40 items" in out
    assert "layer 0 of small-mae is the same for every item" in " ".join(out.split())
    for metric in ("mutual_knn", "cka"):
        picture = tmp_path / "out" / f"heatmap-small-mae-small-llm-{metric}.png"
        assert Image.open(picture).size[0] > 300


def test_same_command_same_numbers(command, tmp_path):
    assert run(command()) == 0
    first = json.loads((tmp_path / "out" / "result.json").read_text())["pairs"]
    assert run(command("--batch-size", "3")) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["pairs"] == first


def test_several_encoders_in_one_table(command, tmp_path, small_mae):
    other = tmp_path / "other-mae"
    shutil.copytree(small_mae, other)
    assert run(command("--encoder", str(other), "--encoder", str(small_mae), "--metric", "cka")) == 0
    pairs = json.loads((tmp_path / "out" / "result.json").read_text())["pairs"]
    assert [p["encoder"] for p in pairs] == ["small-mae", "other-mae"]


def bad(command_line: list[str], capsys, status: int, *says: str) -> None:
    assert run(command_line) == status
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("alignlab: ")]
    assert len(lines) == 1, shown.err
    for words in says:
        assert words in lines[0], lines[0]
    assert "Traceback" not in shown.err + shown.out


def test_unknown_names_exit_2_with_near_ones(command, capsys):
    bad(command(encoder="mea"), capsys, 2, "unknown encoder 'mea'", "mae")
    bad(command("--llm", "smolm2"), capsys, 2, "smollm2")
    bad(command("--metric", "ckaa"), capsys, 2, "unknown metric 'ckaa'", "cka")
    bad(command(data="scene"), capsys, 2, "scene")
    bad(command("--pool", "max"), capsys, 2, "pool must be one of cls, mean")
    bad(command("--device", "tpu"), capsys, 2, "--device must be auto, cpu or cuda, got 'tpu'")
    bad(command("--dtype", "int8"), capsys, 2, "int8")


def test_unknown_options_exit_2(capsys):
    bad(["measure", "--nonsense"], capsys, 2, "--nonsense")
    bad(["measure", "--k", "many"], capsys, 2, "--k", "integer")
    bad(["measures"], capsys, 2, "measures")


def test_too_few_items_for_k(command, capsys):
    bad(command("--k", "40"), capsys, 2, "k must be an int in [1, N-1], got 40 with N=40")
    bad(command("--k", "20"), capsys, 2, "--k 20 needs 42 items", "got 40", "--resamples 0")
    bad(command("--n", "3"), capsys, 2, "4 items or more, got 3")
    bad(command("--n", "41"), capsys, 2, "41", "40")


@pytest.fixture
def spoilt(pictures, tmp_path) -> Path:
    folder = tmp_path / "spoilt"
    shutil.copytree(pictures, folder)
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:60])
    return folder


def test_a_truncated_image_is_named_and_can_be_skipped(command, spoilt, capsys, tmp_path):
    bad(command(data=spoilt), capsys, 2, "7.png", "--skip-bad")
    assert run(command("--skip-bad", data=spoilt)) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["data"]["n"] == 39
    assert [bad_item["id"] for bad_item in result["data"]["skipped"]] == ["7.png"]
    assert "1 bad item(s) left out" in capsys.readouterr().out


def test_a_missing_caption_image_or_folder_is_named(command, pictures, tmp_path, capsys):
    lines = (pictures / "captions.jsonl").read_text().splitlines()
    folder = tmp_path / "data"
    shutil.copytree(pictures, folder)
    (folder / "captions.jsonl").write_text("\n".join([*lines[:3], json.dumps({"image": "3.png"}), *lines[4:]]))
    bad(command(data=folder), capsys, 2, "captions.jsonl", "4", "caption")
    (folder / "captions.jsonl").write_text("\n".join(lines))
    (folder / "5.png").unlink()
    bad(command(data=folder), capsys, 2, "5.png")
    bad(command(data=tmp_path / "nowhere"), capsys, 2, "nowhere")
    (tmp_path / "empty").mkdir()
    bad(command(data=tmp_path / "empty"), capsys, 2, "empty")


def test_a_broken_model_folder_is_named(command, small_mae, tmp_path, capsys):
    broken = tmp_path / "broken-mae"
    shutil.copytree(small_mae, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    bad(command(encoder=broken), capsys, 2, "broken-mae")


def test_no_network_for_a_hub_model_is_one_line(command, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    bad(command(encoder="nobody/nothing"), capsys, 1, "nobody/nothing", "network")


def test_a_full_disk_is_one_line(command, capsys, monkeypatch, tmp_path):
    from alignlab.features import store

    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "fsync", full)
    bad(command(), capsys, 1, "No space left on device", str(tmp_path / "home"))


def test_a_figure_that_cannot_be_written_costs_no_result(command, capsys, monkeypatch, tmp_path):
    def full(self, path, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert run(command("--k", "5")) == 1
    error = capsys.readouterr().err
    assert "heatmap-small-mae-small-llm-mutual_knn.png" in error
    assert "cannot be written (No space left on device); choose another place" in error
    assert json.loads((tmp_path / "out" / "result.json").read_text())["pairs"]


def test_places_that_cannot_be_written_are_found_out_before_the_work(command, capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    bad(command("--json", str(tmp_path / "file" / "r.json")), capsys, 1, "choose another --json")
    monkeypatch.setattr("tempfile.TemporaryFile", _read_only)
    bad(command(), capsys, 1, "Read-only file system", "choose another --out")


def _read_only(**_: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_names_show_on_any_terminal(command, tmp_path):
    import io

    from rich.console import Console

    from alignlab.cli.measure import show

    assert run(command()) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    for pair in result["pairs"]:
        pair["encoder"] = "efficientnet-lite0"
    for width in (80, 100, 140):
        out = io.StringIO()
        show(Console(file=out, width=width), result, tmp_path)
        lines = out.getvalue().splitlines()
        assert max(len(line) for line in lines if line.startswith("│")) <= width
        rows = [line for line in lines if "efficientnet-lite0" in line]
        assert len(rows) == 2, out.getvalue()
        assert "mutual_knn" in rows[0]
        assert "…" not in out.getvalue()


def test_out_that_is_a_file_is_refused(command, capsys, tmp_path):
    (tmp_path / "out").write_text("")
    bad(command(), capsys, 2, "is a file")


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_is_one_line(tmp_path, small_llm, small_mae):
    """A real Ctrl-C in the middle of an extraction, and the same command again."""
    home = tmp_path / "home"
    arguments = ["measure", "--encoder", str(small_mae), "--llm", str(small_llm), "--out", str(tmp_path / "out"), *FAST]
    environment = {**os.environ, "ALIGNLAB_HOME": str(home)}
    command_line = [sys.executable, "-m", "alignlab", *arguments, "--batch-size", "1"]
    process = subprocess.Popen(command_line, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(home.glob("features/*/shard-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 1
    assert shown.splitlines()[-1].startswith("alignlab: interrupted")
    assert "Traceback" not in shown
    pairs = []
    for cache in (home, tmp_path / "undisturbed"):
        environment["ALIGNLAB_HOME"] = str(cache)
        assert subprocess.run(command_line, env=environment, capture_output=True).returncode == 0
        pairs.append(json.loads((tmp_path / "out" / "result.json").read_text())["pairs"])
    assert pairs[0] == pairs[1]


def test_help_and_import_do_not_load_torch():
    code = (
        "import sys, alignlab, alignlab.cli; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for arguments in (
        ["--help"],
        ["measure", "--help"],
        ["pretrain", "--help"],
        ["data", "render", "--help"],
        ["--version"],
    ):
        done = subprocess.run([sys.executable, "-m", "alignlab", *arguments], capture_output=True, text=True)
        assert done.returncode == 0
        assert done.stdout


def test_another_configuration_is_another_checkpoint(small_mae, small_llm, tmp_path):
    """Settings decide what a model computes as much as weights do: none of its features may be taken for the other's."""
    from alignlab.models.weights import folder_checkpoint

    for source, file in ((small_mae, "config.json"), (small_llm, "tokenizer.json")):
        other = tmp_path / source.name
        shutil.copytree(source, other)
        assert folder_checkpoint(other) == folder_checkpoint(source)
        (other / file).write_text((other / file).read_text() + " ")
        assert folder_checkpoint(other) != folder_checkpoint(source)
        changed = folder_checkpoint(other)
        (other / "README.md").write_text("words")
        assert folder_checkpoint(other) == changed
        content = bytearray((other / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (other / "model.safetensors").write_bytes(content)
        assert folder_checkpoint(other) != changed


def test_any_metric_with_splits_and_approximations(tmp_path, capsys, command, monkeypatch):
    names = ("unbiased_cka", "rsa", "cycle_knn", "procrustes")
    metrics = [part for name in names for part in ("--metric", name)]
    out = tmp_path / "several"
    assert run(command("--k", "5", "--split-half", "3", "--approximate", "minibatch", *metrics, "--out", str(out))) == 0
    pairs = json.loads((out / "result.json").read_text())["pairs"]
    assert [pair["metric"] for pair in pairs] == list(names)
    for pair in pairs:
        assert pair["held_out"] is not None
        assert pair["held_out_null"] is not None
        assert pair["p"] is not None
    assert pairs[0]["params"]["approximate"] == "minibatch"
    assert pairs[2]["params"]["k"] == 5
    assert run(command("--metric", "rsa", "--option", "rsa.compare=pearson", "--out", str(out))) == 0
    assert json.loads((out / "result.json").read_text())["pairs"][0]["params"]["compare"] == "pearson"
    bad(command("--metric", "rsa", "--option", "rsa.sigma=1"), capsys, 2, "rsa has no option sigma here")
    import alignlab.features

    monkeypatch.setattr(alignlab.features, "extract", None)  # what cannot be is said before anything is computed
    nonsense = ("--metric", "rbf_cka", "--option", "rbf_cka.sigma=abc")
    bad(command(*nonsense), capsys, 2, "rbf_cka cannot be computed with sigma='abc'")
    bad(command("--metric", "rsa", "--option", "rsa.compare=x"), capsys, 2, "compare")
    bad(command("--metric", "cknna", "--k", "1"), capsys, 2, "k must be")
    bad(command("--metric", "mutual_knn", "--option", "mutual_knn.k=30"), capsys, 2, "k must be")
    bad(command("--metric", "rsa", "--option", "compare"), capsys, 2, "--option must be METRIC.NAME=VALUE")
    bad(command("--metric", "rsa", "--option", "cka.x=1"), capsys, 2, "cka is not among --metric rsa")
    bad(
        command("--metric", "cka", "--approximate", "faiss"),
        capsys,
        2,
        "approximate='faiss' is for a metric of neighbours",
    )
    bad(command("--split-half", "-1"), capsys, 2, "--split-half must be 0 or more, got -1")


def test_hidden_failures_still_make_one_line(monkeypatch, capsys, command):
    import alignlab.features

    def broken(*_, **__):
        raise KeyError("surprise")

    monkeypatch.setattr(alignlab.features, "extract", broken)
    bad(command(), capsys, 1, "unexpected KeyError", "ALIGNLAB_DEBUG=1")


def test_render_writes_a_data_set(tmp_path, capsys):
    assert run(["data", "render", str(tmp_path / "s"), "--n", "2", "--size", "32"]) == 0
    assert len(load_dataset(tmp_path / "s")) == 2
    bad(["data", "render", str(tmp_path / "s"), "--n", "2"], capsys, 2, "already holds")
    bad(["data", "render", str(tmp_path / "t"), "--split", "test"], capsys, 2, "--split must be eval or train")


def test_pretrain_names_what_is_wrong(tmp_path, capsys):
    bad(["pretrain", "gan"], capsys, 2, "kind must be one of mae, dvae, beit, vqgan, clip, pca, got 'gan'")
    bad(["pretrain", "mae", "--steps", "0"], capsys, 2, "--steps must be 1 or more, got 0")
    bad(["pretrain", "mae", "--data", str(tmp_path / "no"), "--out", str(tmp_path)], capsys, 2, "no")
