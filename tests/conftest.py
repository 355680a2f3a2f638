"""Shapes in the signatures are checked at run time in every test: jaxtyping with beartype."""

import os

os.environ.setdefault("DO_NOT_TRACK", "1")

from jaxtyping import install_import_hook

# Must come before any import of the package.
install_import_hook("incontext_linear", "beartype.beartype")

import hypothesis  # noqa: E402
import torch  # noqa: E402

# Two threads at most: the suite shares its cores, and results must not depend on their number.
torch.set_num_threads(2)
hypothesis.settings.register_profile("project", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("project")
