"""What a user is told when the hub says no: a server of this machine answers as the hub does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

# The hub's address is read when its library is imported, hence a process of its own.
CODE = """
import sys
from alignlab.models.llm import load_llm
for name in sys.argv[1:]:
    try:
        load_llm(name)
    except Exception as error:
        print(type(error).__name__, error, sep=": ")
"""
ANSWERS = {"gated": (403, "GatedRepo"), "missing": (404, "RepoNotFound"), "private": (401, "RepoNotFound")}


class Hub(BaseHTTPRequestHandler):
    """Answers `/org/KIND/...` as the hub does for such a model."""

    def do_HEAD(self) -> None:
        kind = next((kind for kind in ANSWERS if f"/org/{kind}" in self.path), "missing")
        status, code = ANSWERS[kind]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "Access to this model is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def told(names: list[str], endpoint: str, cache: Path) -> list[str]:
    """What loading each of `names` says where the hub is at `endpoint`."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    kept = {key: value for key, value in kept.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    env = kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_TOKEN": "hf_none", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", CODE, *names], capture_output=True, text=True, env=env, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_hub_that_says_no(hub: str, tmp_path: Path) -> None:
    gated = (
        "RuntimeError: could not load 'org/gated' from the hub: it is gated; accept the licence at "
        "https://huggingface.co/org/gated, then run `hf auth login`"
    )
    absent = (
        "RuntimeError: could not load 'org/{}' from the hub: there is no such public model; check the name, or "
        "run `hf auth login` if it is private"
    )
    names = ["org/gated", "org/gated[:2]@random", "org/missing", "org/private"]
    assert told(names, hub, tmp_path) == [gated, gated, absent.format("missing"), absent.format("private")]
