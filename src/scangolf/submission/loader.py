"""The part of a train_gpt.py that imports the modules which stand in it."""

import importlib.abc
import importlib.util
import linecache
import sys
from pathlib import Path

FILES: dict[str, str] = {}
"""The text of every file by its path."""


class Loader(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports modules from FILES as if they lay in a folder, `root`, with their data beside them.

    Tracebacks, `inspect` and Triton, which compiles kernels from their source, find the lines.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        for path, text in FILES.items():
            name = root + path
            linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        found = self.get_filename(name).removeprefix(self.root) in FILES
        return importlib.util.spec_from_loader(name, self) if found else None

    def get_filename(self, fullname: str) -> str:
        stem = fullname.replace(".", "/")
        return self.root + (f"{stem}.py" if f"{stem}.py" in FILES else f"{stem}/__init__.py")

    def get_data(self, path) -> bytes:
        return FILES[path.removeprefix(self.root)].encode()


def write_sources(folder: str) -> None:
    """Writes FILES out, to be read."""
    for name, text in FILES.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
