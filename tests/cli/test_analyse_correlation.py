"""`alignlab analyse correlation` on what the other commands wrote."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alignlab.cli import run


@pytest.fixture(scope="module")
def results(tmp_path_factory, small_mae, small_llm, blurs):
    """Alignment of a small pair, and restorers through all, one and none of its trained blocks."""
    folder = tmp_path_factory.mktemp("results")
    pictures = str(blurs("pictures", 24, caption="blur number {}\n"))
    words = ["measure", "--encoder", str(small_mae), "--llm", str(small_llm), "--data", pictures, "--k", "3"]
    assert run([*words, "--nulls", "0", "--resamples", "0", "--out", str(folder / "measure")]) == 0
    words = ["restore", "train", "--encoder", str(small_mae), "--data", pictures, "--steps", "1", "--batch-size", "2"]
    words += ["--warmup", "0", "--n", "2", "--dtype", "float32"]
    for name, suffix in (("whole", ""), ("one", "[:1]"), ("random", "@random")):
        assert run([*words, "--llm", f"{small_llm}{suffix}", "--out", str(folder / name)]) == 0
    return folder


def other_encoder(results, folder, name):
    """The same results as if of another encoder, to have points enough."""
    made = []
    for part in ("measure", "whole", "one"):
        text = (results / part / "result.json").read_text()
        there = folder / name / part
        there.mkdir(parents=True)
        (there / "result.json").write_text(text.replace("small-mae", name))
        made.append(str(there))
    return made


def test_depths_of_encoders_from_end_to_end(results, tmp_path, capsys, report_of):
    ours = [str(results / name) for name in ("measure", "whole", "one", "random")]
    more = [path for name in ("mae-b", "mae-c") for path in other_encoder(results, tmp_path, name)]
    words = ["analyse", "correlation", *ours, *more, "--out", str(tmp_path / "out")]
    assert run([*words, "--json", str(tmp_path / "too.json")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result == json.loads((tmp_path / "too.json").read_text())
    assert (result["schema"], result["task"], result["images"]) == ("alignlab.analyse-correlation/1", "denoise", [2])
    page = report_of(tmp_path / "out")
    assert "all points, as if independent" in page
    assert "all points, whole encoders permuted" in page
    assert all(sentence in page for sentence in result["readings"])
    measured = json.loads((results / "measure" / "result.json").read_text())
    cka = np.array(next(pair["matrix"] for pair in measured["pairs"] if pair["metric"] == "cka"))
    gains = {
        name: json.loads((results / name / "result.json").read_text())["evaluations"][0]["gain"]["psnr"]["mean"]
        for name in ("whole", "one")
    }
    found = {(point["encoder"], point["llm"]): point for point in result["points"]}
    assert len(found) == 6
    one, whole = found["small-mae", "small-llm[:1]"], found["small-mae", "small-llm"]
    assert one["alignment"]["cka at"] == pytest.approx(cka[:, 1].max())
    assert one["alignment"]["cka upto"] == pytest.approx(cka[:, :2].max())
    assert whole["alignment"]["cka at"] == pytest.approx(cka[:, 2].max())
    assert (one["restoration"], whole["restoration"]) == (gains["one"], gains["whole"])
    assert {one["score"] for one in result["correlations"]} == {
        f"{metric} {reading}" for metric in ("cka", "mutual_knn") for reading in ("at", "upto")
    }
    assert len(result["missing"]) == 1
    assert "without alignment: small-mae / small-llm@random" in printed
    assert "3 encoders are 3 points" in printed
    assert (tmp_path / "out" / "correlation.png").stat().st_size > 5000
    assert run([*words[:-2], "--metric", "cka", "--column", "restored", "--out", str(tmp_path / "again")]) == 0
    result = json.loads((tmp_path / "again" / "result.json").read_text())
    assert {one["score"] for one in result["correlations"]} == {"cka at", "cka upto"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["measure", "whole", "one"],
            "needs 3 points at least, got 2 (small-mae / small-llm[:1], small-mae / small-llm)",
        ),
        (["measure", "whole", "random"], "without alignment: small-mae / small-llm@random: no cka, mutual_knn"),
        (["whole", "one"], "there is no alignment score"),
        (["measure"], "there is no restoration"),
        (["measure", "whole", "--column", "psnr"], "--column must be one of gain, lift, restored"),
        (["measure", "whole", "--metric", "rsa"], "the results have mutual_knn, cka"),
        (["measure", "whole", "--how", "mlp"], "--how must be lm4lv or vit-llm"),
        (["measure", "nothing"], "nothing"),
        (["measure", "whole/adapters.safetensors"], "is no result of `alignlab measure`"),
    ],
)
def test_what_cannot_be_correlated(results, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    paths = [
        word if word.startswith("--") or words[i - 1].startswith("--") else str(results / word)
        for i, word in enumerate(words)
    ]
    assert run(["analyse", "correlation", *paths]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
