"""Where alignlab keeps what it computes and finds what it ships."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The cache folder: `$ALIGNLAB_HOME`, or the platform's cache folder for the user."""
    chosen = os.environ.get("ALIGNLAB_HOME")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("alignlab")


def shipped(*parts: str) -> Path:
    """A file or folder that comes with alignlab: from `data/` in a checkout, from the package in a wheel."""
    package = Path(__file__).resolve().parent
    installed = package / "_shipped"
    root = installed if installed.is_dir() else package.parent / "data"
    return root.joinpath(*parts)
