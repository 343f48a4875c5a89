"""`python -m studies.cli` is `vlm-guard`, for environments whose scripts are not on the path."""

from studies.cli import main

main()
