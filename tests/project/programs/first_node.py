"""``kedro ARGUMENTS`` up to its first node; then prints a JSON object of what is loaded by then."""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from kedro.framework.cli import main
from kedro.pipeline.node import Node


def tell(self: Node, inputs: dict[str, Any] | None = None) -> NoReturn:
    """Print which modules are loaded, and what is known of the search for garbage."""
    facts = {
        "node": self.name,
        "modules": sorted(sys.modules),
        "searched": gc.isenabled(),
        "left_out": gc.get_freeze_count(),
    }
    Path(os.environ["FACTS"]).write_text(json.dumps(facts), encoding="utf-8")
    os._exit(0)


Node.run = tell
main()
