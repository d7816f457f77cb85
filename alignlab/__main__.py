"""`python -m alignlab`, and what `accelerate launch -m alignlab` starts."""

from alignlab.cli import main

main()
