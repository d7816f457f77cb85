"""`alignlab probe linear` on small random models."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from alignlab.cli import run


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """24 pictures of three grey levels with captions that name them, and labels."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images").mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(24):
        grey = ("dark", "middling", "bright")[i % 3]
        pixels = np.clip(rng.normal(60 + 70 * (i % 3), 8, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:02}.png")
        line = {
            "image": f"images/{i:02}.png",
            "caption": f"a {grey} picture {'!' * (i % 4)}",
            "label": grey,
            "same": "x",
        }
        lines.append(json.dumps(line))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def command(small_mae, small_llm, shapes):
    def make(*more):
        models = ["--encoder", str(small_mae), "--llm", str(small_llm), "--data", str(shapes), "--device", "cpu"]
        return ["probe", "linear", *models, "--nulls", "3", "--controls", "2", *map(str, more)]

    return make


def test_a_run(command, tmp_path, capsys, report_of):
    assert run(command("--out", tmp_path / "out", "--json", tmp_path / "copy.json")) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result == json.loads((tmp_path / "copy.json").read_text())
    assert result["schema"] == "alignlab.probe-linear/1"
    assert (result["encoder"]["name"], result["llm"]["name"], result["data"]["n"]) == ("small-mae", "small-llm", 24)
    (pair,) = result["pairs"]
    assert pair["encoder_layer"] in (1, 2)  # [CLS] is the same for all before the first block
    assert result["matrix"]["encoder_layers"] == [1, 2]
    assert len(pair["text_to_image"]["r2"]) == len(pair["image_to_text"]["r2"]) == 3
    assert pair["text_to_image"]["recall"]["5"]["chance"] == pytest.approx(5 / 24)
    best = max(range(2), key=lambda i: max(row[i] for row in result["matrix"]["r2"]))
    assert pair["text_to_image"]["r2"] == pytest.approx([row[best] for row in result["matrix"]["r2"]], abs=1e-5)
    assert pair["text_to_image"]["best_p"] is None  # the encoder's layer was chosen on these items
    assert pair["image_to_text"]["p"] is None
    assert any("there is no p" in note for note in result["notes"])
    page = report_of(tmp_path / "out")
    assert f"Ridge regressions between every layer of small-llm and layer {pair['encoder_layer']} of small-mae" in page
    assert "Logistic probes for class" in page
    (label,) = result["labels"]
    assert (label["label"], label["n"], label["classes"]) == ("class", 24, 3)
    assert label["majority"] == pytest.approx(1 / 3)
    text, image = label["sides"]
    assert max(text["accuracy"]["value"]) > 0.9
    assert image["accuracy"]["value"][0] < 0.6  # the constant layer
    assert max(image["accuracy"]["value"]) > 0.9
    assert any("layer(s) 0 are the same" in note for note in result["notes"])
    assert any("all 24 items are x" in note and "left out" in note for note in result["notes"])
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {f"linear-regression-{pair['encoder_layer']}.png", "linear-label-class.png"}
    said = capsys.readouterr().out
    assert "Ridge regression" in said
    assert "Logistic probes" in said


def test_all_layers_of_the_encoder(command, tmp_path):
    assert run(command("--encoder-layer", "all", "--label", "label", "--out", tmp_path)) == 2
    assert run(command("--encoder-layer", "all", "--label", "class", "--out", tmp_path)) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [pair["encoder_layer"] for pair in result["pairs"]] == [1, 2]
    assert result["matrix"] is None


def test_captions_that_do_not_differ(small_mae, small_llm, blurs, tmp_path, capsys):
    pictures = str(blurs("alike", 24))
    models = ["--encoder", str(small_mae), "--llm", str(small_llm), "--data", pictures]
    assert run(["probe", "linear", *models, "--nulls", "2", "--out", str(tmp_path / "out")]) == 2
    assert "the captions do not differ" in capsys.readouterr().err


def test_data_without_labels(small_mae, small_llm, blurs, tmp_path):
    photos = blurs("unlabelled", 10, caption="a blur {}\n")
    models = ["--encoder", str(small_mae), "--llm", str(small_llm), "--data", str(photos), "--device", "cpu"]
    assert run(["probe", "linear", *models, "--nulls", "0", "--encoder-layer", "2", "--out", str(tmp_path / "a")]) == 0
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["labels"] == []
    assert "carry no labels" in result["notes"][0]
    assert result["pairs"][0]["text_to_image"]["null_mean"] is None


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--label", "taste"), "--label taste: the items of"),
        (("--label", "same"), "label same: all 24 items are x; a probe needs two classes"),
        (("--folds", "13"), "folds must be in 2..12 for 24 items, got 13"),
        (("--folds", "1"), "folds must be in 2..12"),
        (("--n", "3"), "3 items are too few to hold some out"),
        (("--folds", "9", "--label", "class"), "0 of its 3 classes have 9 items"),
        (("--encoder-layer", "first"), "--encoder-layer must be best, all or a layer's number"),
        (("--encoder-layer", "3"), "--encoder-layer 3: small-mae has the layers 0 to 2"),
        (("--encoder-layer", "0"), "--encoder-layer 0: it is the same for every item"),
        (("--controls", "-1"), "--controls must be 0 or more"),
        (("--nulls", "-1"), "--nulls must be 0 or more"),
        (("--pool", "concat"), "pool must be one of"),
        (("--dtype", "8bit"), "--dtype must be"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, capsys, more, complaint):
    assert run(command(*more, "--out", tmp_path / "out")) == 2
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert "Traceback" not in error
