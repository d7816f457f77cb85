from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from alignlab.cli import run
from alignlab.data.named import NAMED


def test_list_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "list"]) == 0
    shown = capsys.readouterr().out
    for data in NAMED.values():
        assert data.name in shown
        assert f"{data.items:,}" in shown


@pytest.mark.parametrize("name", ["llava595k", "imagenet"])
def test_show_tells_what_is_known(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(["data", "show", name]) == 0
    shown = "".join(capsys.readouterr().out.split())
    for told in (NAMED[name].source, f"{NAMED[name].items:,}", "GB"):
        assert "".join(told.split()).replace("(afterregistration)", "") in shown.replace("│", "")
    assert "here:" not in shown


def test_show_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "show", "scenes", "--items", "1"]) == 0
    shown = capsys.readouterr().out
    assert "here: 1,024 of 1,024 items, 5,120 captions" in shown
    assert "images/00000.jpg  224 x 224" in shown
    assert "00001.jpg" not in shown


def test_show_a_folder_of_a_name_and_any_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    found = {
        "images": [{"id": 0, "file_name": "a.png", "domain": "near-domain"}],
        "annotations": [{"image_id": 0, "caption": f"[bold]caption {i}"} for i in range(10)],
    }
    (tmp_path / "nocaps_val_4500_captions.json").write_text(json.dumps(found))
    assert run(["data", "show", f"nocaps:{tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "here: 1 of 4,500 items, 10 captions" in shown
    assert "[bold]caption 0" in shown
    assert "... 7 more" in shown
    assert "domain: 'near-domain'" in shown
    (tmp_path / "a.txt").write_text("one")
    assert run(["data", "show", str(tmp_path)]) == 0
    assert "here: 1 items, 1 captions" in capsys.readouterr().out


def test_what_cannot_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "show", "nocap"]) == 2
    assert "did you mean 'nocaps'?" in capsys.readouterr().err
    assert run(["data", "show", f"llava595k:{tmp_path}"]) == 2
    assert "no chat.json in it; download" in capsys.readouterr().err
    assert run(["data", "show", "scenes", "--items", "-1"]) == 2
    assert "--items must be 0 or more" in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_a_failure_not_bad_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert run(["data", "show", "hf:minhuh/prh@wit_1024"]) == 1
    shown = capsys.readouterr().err.strip()
    assert "the hub cannot be reached" in shown
    assert "\n" not in shown
