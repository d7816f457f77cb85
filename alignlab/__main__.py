"""The `alignlab` command, `python -m alignlab`, and what `accelerate launch -m alignlab` starts."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. A Ctrl-C while the first modules load is one line too."""
    try:
        from alignlab.cli import run

        sys.exit(run())
    except KeyboardInterrupt:
        sys.exit("alignlab: interrupted")


if __name__ == "__main__":
    main()
