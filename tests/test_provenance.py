"""What a result records of where it was made."""

from __future__ import annotations

import subprocess
import time

import pytest

from alignlab import provenance


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    """And says where the code was changed since; an installed package has none."""
    code = tmp_path / "alignlab" / "provenance.py"
    code.parent.mkdir()
    code.write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(code))
    later = time.time() + 60
    assert provenance._commit(later) is None

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("init", "-q")
    except OSError:
        pytest.skip("there is no git")
    git("add", "-A")
    git("commit", "-qm", "one")
    whole = git("rev-parse", "HEAD")
    assert provenance._commit(later) == whole[:12]
    assert provenance._commit(0.0) == whole[:12] + "+"  # the file is younger than such a process
    code.write_text("x = 2\n")
    assert provenance._commit(later) == whole[:12] + "+"
    assert provenance.environment("cpu")["commit"] == whole[:12] + "+"
