"""The mixers by the name a layer pattern uses, which is also that of their file.

A new one is a file here, its import and its line below, and its name in `config.LayerKind`, which
is read where torch is not: docs/mixers.md makes one.
"""

from collections.abc import Callable

from scangolf.config import LayerKind, ModelConfig
from scangolf.layers.attention import Attention
from scangolf.layers.gdn import GDN
from scangolf.layers.lti import LTI
from scangolf.layers.mixer import Mixer
from scangolf.layers.parallel import Parallel
from scangolf.layers.s6 import S6
from scangolf.layers.s6_seed import S6Seed
from scangolf.layers.ssd import SSD

MIXERS: dict[LayerKind, Callable[[ModelConfig], Mixer]] = {
    "attention": Attention,
    "s6": S6,
    "s6_seed": S6Seed,
    "lti": LTI,
    "ssd": SSD,
    "gdn": GDN,
    "parallel": Parallel,
}
