"""`python -m alignlab`, and what `accelerate launch -m alignlab` starts."""

from alignlab.cli import main

if __name__ == "__main__":
    main()
