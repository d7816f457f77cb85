"""`alignlab analyse adapters` from the command line, on adapters that were trained for a step."""

from __future__ import annotations

import json

import pytest

from alignlab.cli import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_mae, small_llm, blurs):
    folder = tmp_path_factory.mktemp("trained")
    words = [
        "restore",
        "train",
        "--encoder",
        str(small_mae),
        "--llm",
        str(small_llm),
        "--data",
        str(blurs("pictures", 6)),
    ]
    words += ["--steps", "1", "--batch-size", "2", "--warmup", "0", "--n", "0", "--dtype", "float32"]
    for name, options in (("both", ()), ("raw", ("--features", "raw")), ("mlp", ("--how", "mlp"))):
        assert run([*words, *options, "--out", str(folder / name)]) == 0
    return folder


def test_a_table_and_a_result_for_every_checkpoint(trained, tmp_path, capsys, report_of):
    both, raw = str(trained / "both"), str(trained / "raw")
    words = ["analyse", "adapters", both, raw, both, "--draws", "4", "--out", str(tmp_path / "out")]
    assert run([*words, "--json", str(tmp_path / "too.json")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result == json.loads((tmp_path / "too.json").read_text())
    assert result["schema"] == "alignlab.analyse-adapters/1"
    assert [list(one["coordinates"]) for one in result["checkpoints"]] == [["raw", "whitened"], ["raw"]]
    assert result["simulation"] is None
    assert result["paper"]["D"] == {"Random": 12.52, "Ours": 1.53e4, "Identity": None}
    for one in result["checkpoints"]:
        assert (one["width"], one["llm_width"]) == (24, 24)
        assert f"{one['coordinates']['raw']['trained']['distance']:.3g}" in printed
        assert one["identity"]["ratio"] == 0
        for picture in one["pictures"]:
            assert (tmp_path / "out" / picture).stat().st_size > 5000
    page = report_of(tmp_path / "out")
    assert page.count("A is 24 × 24") >= 2
    assert f"{result['checkpoints'][0]['coordinates']['raw']['trained']['ratio']:.3g}" in page
    assert "1.53e+04" in printed
    assert "other models" in printed
    assert "--simulate shows both" in printed


def test_the_simulation_needs_no_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["analyse", "adapters", "--simulate", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["checkpoints"] == []
    assert f"{result['simulation']['sample'][-1]['diagonal_mean']:.2f}" in printed
    assert "the mean grows with n, the median ratio stays" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a checkpoint"),
        (["{trained}/mlp"], "is a mlp, which has no pair of linear layers"),
        (["{trained}"], "give a folder that `alignlab restore train` wrote"),
        (["{trained}/raw", "--draws", "0"], "--draws must be more than 0"),
        (["{trained}/raw", "--seed", "-1"], "--seed must be 0 or more"),
    ],
)
def test_what_cannot_be_analysed(trained, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert run(["analyse", "adapters", *(word.format(trained=trained) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
