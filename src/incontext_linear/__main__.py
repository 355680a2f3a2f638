"""Run the project as a package: ``python -m incontext_linear`` does what ``kedro run`` does."""

from pathlib import Path

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project


def main(*args: str, **kwargs: str) -> None:
    """Hand the command line to Kedro's run command."""
    package_name = Path(__file__).parent.name
    configure_project(package_name)
    find_run_command(package_name)(*args, **kwargs)


if __name__ == "__main__":
    main()
