"""A small dataset, and runs that are written instead of trained."""

from pathlib import Path

import pytest

from scangolf.cli import main


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred sentences, 300 tokens in the vocabulary."""
    folder = tmp_path_factory.mktemp("experiments")
    sentences = [
        f"The {a} {b} went to the {c} and met a {b} from the {c}."
        for a in ("old", "young", "small", "quiet", "clever")
        for b in ("fox", "owl", "bear", "cat", "hare", "wolf")
        for c in ("river", "hill", "town", "wood", "lake", "field", "cave")
    ]
    (folder / "story.txt").write_text("\n".join(sentences))
    main(
        [
            *("data", "text", str(folder / "story.txt"), "--out", str(folder / "data")),
            *("--val-share", "0.2", "--vocab-size", "300"),
        ]
    )
    return folder / "data"
