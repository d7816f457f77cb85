"""`alignlab probe induction` on small random models and a training of two steps."""

from __future__ import annotations

import json

import pytest

from alignlab.cli import run


@pytest.fixture(scope="module")
def photos(blurs):
    return blurs("induction-photos", 15)


@pytest.fixture(scope="module")
def train(small_mae, small_llm, photos, tmp_path_factory):
    def make(*more):
        folder = tmp_path_factory.mktemp("trained") / "tiny"
        models = ["--encoder", str(small_mae), "--llm", str(small_llm), "--data", str(photos), "--dtype", "float32"]
        size = [
            "--steps",
            "2",
            "--batch-size",
            "2",
            "--warmup",
            "1",
            "--task-tokens",
            "2",
            "--device",
            "cpu",
            "--n",
            "0",
        ]
        assert run(["restore", "train", *models, *size, *more, "--out", str(folder)]) == 0
        return folder

    return make


@pytest.fixture(scope="module")
def trained(train):
    return train("--task", "denoise", "--task", "rotate")


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_text_alone(small_llm, tmp_path, capsys, report_of):
    command = ["probe", "induction", "--llm", str(small_llm), "--length", "8", "--n", "3", "--device", "cpu"]
    assert run([*command, "--random", "--ablate", "1", "--draws", "2", "--out", str(tmp_path)]) == 0
    result = result_of(tmp_path)
    assert result["schema"] == "alignlab.probe-induction/1"
    assert [one["llm"] for one in result["text"]] == ["small-llm", "small-llm@random"]
    found = result["text"][0]["attention"]
    assert (found["blocks"], found["heads"], found["n"]) == ([1, 2], 2, 3)
    assert [max(row) for row in found["successor"]] == found["block_max"]
    best = found["top"][0]
    assert best["successor"]["mean"] == pytest.approx(max(found["block_max"]), abs=1e-6)
    assert found["successor"][best["block"] - 1][best["head"] - 1] == pytest.approx(max(found["block_max"]))
    assert result["images"] is None
    assert result["agreement"] is None
    groups = [(one["group"], one["draws"], len(one["heads"][0])) for one in result["ablation"]]
    assert groups == [("none", 1, 0), ("text", 1, 1), ("random, blocks of text", 2, 1), ("random, other blocks", 2, 1)]
    assert result["ablation"][1]["heads"] == [[[best["block"], best["head"]]]]
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"induction-text.png", "induction-text-random.png", "induction-ablation.png"}
    page = report_of(tmp_path)
    assert f"{best['block']}.{best['head']}" in page
    assert all(sentence in page for sentence in result["reading"])
    said = capsys.readouterr().out
    assert "nats a token the first time" in said
    assert "Heads switched off" in said


def test_a_checkpoints_sequences(trained, photos, tmp_path):
    command = [
        "probe",
        "induction",
        "--checkpoint",
        str(trained),
        "--data",
        str(photos),
        "--images",
        "3",
        "--device",
        "cpu",
    ]
    size = ["--length", "8", "--n", "2", "--ablate", "1", "--draws", "2", "--task", "rotate"]
    assert run([*command, *size, "--out", str(tmp_path)]) == 0
    result = result_of(tmp_path)
    images = result["images"]
    assert (images["checkpoint"], images["task"], images["n"]) == ("tiny", "rotate", 3)
    assert images["design"]["llm"] == "small-llm"
    assert len(images["attention"]["successor"]) == 2
    assert images["visual_loss"]["mean"] > 0
    assert 0 <= result["agreement"]["shared"] <= result["agreement"]["top"] == 4
    assert [one["group"] for one in result["ablation"]][:3] == ["none", "text", "images"]
    none = result["ablation"][0]
    assert none["visual"]["mean"] == pytest.approx(images["visual_loss"]["mean"], rel=1e-4)
    assert none["visual"]["rise"]["mean"] == none["restored"]["rise"]["mean"] == 0
    assert 0 < none["restored"]["mean"] < 60
    assert any(line.startswith("Without the top 1 heads on images, the PSNR of what") for line in result["reading"])
    assert (tmp_path / "induction-images.png").is_file()
    assert str(photos.parent) not in (tmp_path / "result.json").read_text()  # where things lie is nobody's business


def test_other_restorers_have_no_such_sequences(train, capsys):
    linear = train("--how", "linear")
    assert run(["probe", "induction", "--checkpoint", str(linear)]) == 2
    assert "is linear; the sequences looked at here are those of lm4lv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--length", "1"), "length must be in 2..95"),
        (("--length", "400"), "length must be in 2..95"),
        (("--ablate", "3"), "--ablate 3: small-llm has 4 heads"),
        (("--n", "0"), "--n must be more than 0"),
        (("--task", "denoise"), "--task is one of a checkpoint's"),
        (("--checkpoint", "nowhere"), "nowhere"),
        (("--dtype", "int8"), "--dtype must be"),
    ],
)
def test_bad_input_is_one_line(small_llm, tmp_path, capsys, more, complaint):
    assert run(["probe", "induction", "--llm", str(small_llm), *more, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert len(error.splitlines()) == 1


def test_a_task_that_was_not_learnt_and_a_random_model_twice(trained, small_llm, photos, capsys):
    assert run(["probe", "induction", "--checkpoint", str(trained), "--task", "flip"]) == 2
    assert "has learnt denoise, rotate" in capsys.readouterr().err
    assert run(["probe", "induction", "--llm", f"{small_llm}@random", "--random"]) == 2
    assert "has random weights already" in capsys.readouterr().err
