"""One thread a test process, and a small dataset.

The processes share the cores, and results do not depend on how many threads each has.
"""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred sentences, 300 tokens in the vocabulary; not to be changed."""
    from scangolf.cli import main

    folder = tmp_path_factory.mktemp("story")
    sentences = [
        f"The {a} {b} went to the {c} and met a {b} from the {c}."
        for a in ("old", "young", "small", "quiet", "clever")
        for b in ("fox", "owl", "bear", "cat", "hare", "wolf")
        for c in ("river", "hill", "town", "wood", "lake", "field", "cave")
    ]
    story, out = folder / "story.txt", folder / "data"
    story.write_text("\n".join(sentences))
    options = ["--val-share", "0.2", "--vocab-size", "300"]
    main(["data", "text", str(story), "--out", str(out), *options])
    return out
