"""What a page of docs/ tells its reader to write or to run."""

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The page's code blocks in a language, in order."""
    text = (DOCS / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The command lines of a block as their words, without comments."""
    lines = (shlex.split(line, comments=True) for line in block.splitlines())
    return [words for words in lines if words]
