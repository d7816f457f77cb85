"""Contact sheets come back as they went in."""

import numpy as np
import pytest
import torch

from alignlab.sheets import cut_sheet, save_sheet


def test_pictures_come_back_where_they_were(tmp_path):
    rows = {"given": torch.rand(3, 3, 8, 10), "truth": torch.rand(3, 3, 8, 10)}
    described = save_sheet(rows, tmp_path / "sheet.png")
    assert described == {"file": "sheet.png", "rows": ["given", "truth"], "n": 3, "width": 10, "height": 8}
    for label, pictures in cut_sheet(tmp_path / "sheet.png", described).items():
        for made, image in zip(pictures, rows[label], strict=True):
            expected = image.mul(255).round().byte().permute(1, 2, 0).numpy()
            assert np.array_equal(np.asarray(made), expected)


def test_rows_of_other_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one shape"):
        save_sheet({"a": torch.rand(2, 3, 8, 8), "b": torch.rand(3, 3, 8, 8)}, tmp_path / "sheet.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 3}, "pixels, not"),
        ({"n": 10**9}, "described as"),
        ({"width": -1}, "described as"),
        ({"rows": []}, "pixels"),
    ],
)
def test_a_sheet_that_is_described_wrongly_is_refused(tmp_path, change, message):
    described = save_sheet({"a": torch.rand(2, 3, 8, 8)}, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match=message):
        cut_sheet(tmp_path / "sheet.png", {**described, **change})


def test_what_is_no_picture_is_refused(tmp_path):
    described = save_sheet({"a": torch.rand(2, 3, 8, 8)}, tmp_path / "sheet.png")
    (tmp_path / "sheet.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    with pytest.raises(ValueError, match="no picture"):
        cut_sheet(tmp_path / "sheet.png", described)
