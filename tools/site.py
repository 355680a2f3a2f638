"""Builds the site: the documents, and the graph of the pipelines with its previews beside them.

    python -m tools.site

Anything that Zensical warns of, such as a broken link, stops it. Previews show what is on disk:
after a `kedro run`, the tables and figures of that run.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE, GRAPH = ROOT / "site", ROOT / "site/graph"
KEDRO_VIZ = ROOT / "build"
"""Where ``kedro viz build`` puts its files; it cannot be told another place."""


def main() -> int:
    """Build both; returns the exit status."""
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.rmtree(KEDRO_VIZ, ignore_errors=True)
    if not _run("zensical", "build", "--clean", "--strict"):
        return 1
    # Kedro-viz says what went wrong, and that nothing did by its exit status.
    if not _run("kedro", "viz", "build", "--include-previews") or not _whole(KEDRO_VIZ):
        print("the graph was not built", file=sys.stderr)
        return 1
    shutil.move(KEDRO_VIZ, GRAPH)
    print(f"The site is in {SITE.relative_to(ROOT)}; to read it:")
    print(f"    python -m http.server --directory {SITE.relative_to(ROOT)}")
    return 0


def _run(command: str, *arguments: str) -> bool:
    return subprocess.run([sys.executable, "-m", command, *arguments], cwd=ROOT).returncode == 0


def _whole(folder: Path) -> bool:
    return all((folder / name).exists() for name in ("index.html", "assets", "api/main"))


if __name__ == "__main__":
    sys.exit(main())
