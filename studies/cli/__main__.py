"""Start the command `vlm-guard`, also as `python -m studies.cli`, once its packages are known to be ours."""

import sys

from studies.cli.shadowing import ShadowedPackageError, check_packages


def main() -> None:
    """Run the command line, unless a package would come from somewhere else: that is said before one is imported."""
    try:
        check_packages()
    except ShadowedPackageError as error:
        print(f"vlm-guard: {error}", file=sys.stderr)
        sys.exit(2)
    # Verbs import the packages that were checked just now.
    from studies.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
