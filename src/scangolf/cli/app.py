"""The command and its families of verbs; the other modules of this folder add the verbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tyro.extras import SubcommandApp

Verb = Callable[[], None]
"""What a parsed command line will do, run after parsing is over."""
PresetName = Literal[
    "tiny", "baseline", "seed", "hybrid", "attention", "ssm", "hybrid-1to1",
    "hybrid-s6", "hybrid-gdn", "hybrid-lti", "parallel", "golf",
]  # fmt: skip

app = SubcommandApp()
