"""What was trained between frozen models, as one file: its tensors, and in the file's metadata what it belongs between."""

from __future__ import annotations

import json
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignlab.files import write_tensors
from alignlab.models.weights import sha256_file

ADAPTERS = "adapters.safetensors"
Made = TypeVar("Made")


def write(folder: Path, state: dict[str, Tensor], design: dict[str, Any], frozen: dict[str, str], about: Any) -> None:
    """Write `adapters.safetensors` whole or not at all: tensors, the design that builds their model anew, the checkpoints
    of the frozen models by their part ("encoder", "llm"), and `about`, plain values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = {"design": design, "frozen": frozen, "about": about}
    # One key: several would come in any order, and the file's hash with them.
    write_tensors(folder / ADAPTERS, state, {"alignlab": json.dumps(described)})


def read(folder: Path, command: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description ("design", "frozen", "about") and the tensors that `write` wrote in `alignlab <command>`.

    Raises ValueError for anything else.
    """
    path = folder / ADAPTERS
    if not path.is_file():
        raise ValueError(f"there is no {path}; give a folder that `alignlab {command}` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})["alignlab"])
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
        return {part: dict(described[part]) for part in ("design", "frozen", "about")}, state
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise damaged(folder, command) from error


def checkpoint(folder: Path) -> str:
    """What was trained as results name it: the folder's name and the SHA-256 of the file, `denoise-mae@sha256:...`."""
    return f"{folder.resolve().name}@sha256:{sha256_file(folder / ADAPTERS)}"


def _content(checkpoint: str) -> str:
    """A frozen model's checkpoint without its name, where there is a hash to tell what is in it.

    >>> _content("my-mae@sha256:86019c+position"), _content("facebook/vit-mae-large@142cb8c")
    ('sha256:86019c+position', 'facebook/vit-mae-large@142cb8c')
    """
    _, mark, content = checkpoint.partition("@sha256:")
    return mark[1:] + content if mark else checkpoint


def made(cls: type[Made], values: dict[str, Any]) -> Made:
    """A design from what a file says of it; TypeError where a value is not of its field's type."""
    for name, wanted in get_type_hints(cls).items():
        value = values.get(name)
        kinds = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
        several = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
        if name in values and not (several if get_origin(wanted) is tuple else type(value) in kinds):
            raise TypeError(f"{name} is {value!r}")
    return cls(**values)


def damaged(folder: Path, command: str) -> ValueError:
    return ValueError(f"{folder / ADAPTERS} is no file of `alignlab {command}`, or a damaged one")


def check_frozen(folder: Path, ours: dict[str, str], theirs: dict[str, str]) -> None:
    """ValueError where a frozen model is not the one that the file was trained with; a folder may be called otherwise."""
    for part, found in ours.items():
        if part in theirs and _content(found) != _content(theirs[part]):
            # A decoder goes with its encoder; of the two the encoder is named where both differ.
            give = f"--{part}" if part != "decoder" else "where the adapters' design names it"
            raise ValueError(
                f"{folder / ADAPTERS} was trained with the {part} {theirs[part]}, and this is {found}; give the one it "
                f"was trained with ({give})"
            )
