"""The `alignlab` command, `python -m alignlab`, and what `accelerate launch -m alignlab` starts."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line. A Ctrl-C while the first modules load is one line too."""
    try:
        from alignlab.cli import run

        status = run()
        _leave()
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit("alignlab: interrupted")


def _leave() -> None:
    """Take leave of a launcher's other processes: their threads, still running when the interpreter ends, can abort it."""
    if "torch" not in sys.modules or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
