"""What every test runs under."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def alignlab_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of this session's own: shared by its tests, never the user's."""
    home = tmp_path_factory.mktemp("alignlab-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNLAB_HOME", str(home))
        yield home
