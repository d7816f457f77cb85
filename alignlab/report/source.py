"""The result files that a report is made of: found, read, and told apart by their schema."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignlab.report.node import Node

LARGEST = 256 * 2**20  # bytes of a result file
# What each command writes, and the newest version of it that is known here.
KINDS = {
    "measure": 1,
    "reproduce-table4": 1,
    "caption-train": 1,
    "caption-eval": 1,
    "reconstruct": 1,
    "reproduce": 1,
    "restore-train": 1,
    "restore-eval": 1,
    "probe-layers": 1,
    "probe-linear": 1,
    "probe-induction": 1,
    "analyse-adapters": 1,
    "analyse-components": 1,
    "analyse-correlation": 1,
    "analyse-compute": 1,
    "reproduce-plan": 1,
}


@dataclass(frozen=True)
class Source:
    """One result file: what it holds, the folder of its pictures, its SHA-256. `gaps` grows as the report is made.

    `trouble` says why nothing of the file can be shown.
    """

    name: str
    kind: str
    folder: Path
    sha256: str
    node: Node
    trouble: str = ""
    gaps: list[str] = field(default_factory=list)


def read_all(paths: Sequence[Path]) -> list[Source]:
    """Read result files, or the `result.json` of folders; a folder without one is searched for those of its folders.

    Raises FileNotFoundError and ValueError for what is no result of alignlab at all. A file of a newer version, or of a
    command that reports do not show, is kept with its `trouble`; so is, beside others, a folder without a result.
    """
    files: list[Path] = []
    empty: list[Source] = []
    for path in paths:
        if not path.is_dir():
            found = [path]
        elif (path / "result.json").is_file():
            found = [path / "result.json"]
        else:
            found = sorted(path.glob("**/result.json"))
            if not found:
                if len(paths) == 1:
                    raise ValueError(f"{path} has no result.json, and none of its folders has; name a result")
                trouble = "no result.json in it: it was not finished, or is no run"
                empty.append(Source(path.name, "", path, "", Node({}), trouble))
        files += [one for one in found if one.resolve() not in {other.resolve() for other in files}]
    sources = [*(read(path) for path in files), *empty]
    names = [source.name for source in sources]
    # Folders of one name in different places are told apart by what they lie in.
    return [
        source
        if names.count(source.name) == 1
        else replace(source, name=f"{source.folder.parent.name}/{source.name}".lstrip("/"))
        for source in sources
    ]


def of_kind(sources: Sequence[Source], *kinds: str) -> list[Source]:
    """Those that the commands of these kinds wrote, in their order."""
    return [source for source in sources if source.kind in kinds]


def _printable(value: Any) -> Any:
    """The same with every text fit to be written: half a surrogate pair is no character."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_printable(inner) for inner in value]
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    return value


def read(path: Path) -> Source:
    """One result file."""
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is no result of alignlab: it has {path.stat().st_size / 2**20:,.0f} MiB")
    data = path.read_bytes()
    try:
        value = _printable(json.loads(data))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path} is no result of alignlab: {reason}") from error
    schema = value.get("schema") if isinstance(value, dict) else None
    found = re.fullmatch(r"alignlab\.([a-z0-9-]+)/([0-9]{1,6})", schema) if isinstance(schema, str) else None
    if found is None:
        raise ValueError(f"{path} is no result of alignlab: it has no schema such as alignlab.measure/1")
    kind, version = found[1], int(found[2])
    trouble = ""
    if kind not in KINDS:
        trouble = f"a report does not show alignlab.{kind}"
    elif version > KINDS[kind]:
        trouble = (
            f"it is written as version {version} of alignlab.{kind}, and this alignlab knows version {KINDS[kind]}: "
            "a newer alignlab shows it"
        )
    gaps: list[str] = []
    name = path.resolve().parent.name if path.name == "result.json" else path.stem
    return Source(name, kind, path.resolve().parent, hashlib.sha256(data).hexdigest(), Node(value, gaps), trouble, gaps)
