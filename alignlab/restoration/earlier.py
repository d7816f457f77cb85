"""Rows and pictures of an earlier result of the same comparison: they stay where their runs are no longer at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, stack

from alignlab.data import to_tensor
from alignlab.restoration.experiment import RESULT
from alignlab.sheets import cut_sheet


@dataclass(frozen=True)
class Earlier:
    """`rows` by name, those that are done; `pictures` by grid and row, `[N, 3, H, W]`; `names` of all its rows, the missing
    ones too.
    """

    rows: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    pictures: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()


def read(folder: Path, schema: str, target: str, laboratory: str) -> Earlier:
    """What `folder` holds of a target's result; nothing where there is none, or another's. ValueError for a damaged one."""
    path = folder / RESULT
    if not path.is_file():
        return Earlier()
    try:
        found = json.loads(path.read_text())
        if (found["schema"], found["target"], found["laboratory"]) != (schema, target, laboratory):
            return Earlier()
        rows = {str(row["name"]): row for row in found["rows"] if row["status"] == "done"}
        names = frozenset(str(row["name"]) for row in found["rows"])
        pictures = {str(one["title"]): _cut(folder, one) for one in found["sheets"]}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, and its rows cannot be kept ({error}); delete it, or choose another --out"
        ) from error
    return Earlier(rows, pictures, names)


def _cut(folder: Path, described: Mapping[str, Any]) -> dict[str, Tensor]:
    """The pictures of a sheet by row; none where the file is another or gone."""
    try:
        cut = cut_sheet(folder / Path(described["file"]).name, described)
    except ValueError:
        return {}
    return {label: stack([to_tensor(picture) for picture in pictures]) for label, pictures in cut.items()}
