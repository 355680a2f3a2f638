"""Parameters of the summary over seeds."""

from typing import Annotated

from pydantic import Field

from incontext_linear.config import BootstrapConfig, Config


class AcrossSeedsConfig(Config):
    """Every curve of a finished sweep's variants, as mean over its seeds."""

    sweep: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")] = "seeds"
    """Name of a finished sweep; its folder below ``data/sweeps``."""
    bootstrap: BootstrapConfig = BootstrapConfig()
