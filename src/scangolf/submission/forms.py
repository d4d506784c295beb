"""A bundle as one train_gpt.py: to be read, or packed into as few bytes as it takes."""

from __future__ import annotations

import ast
import base64
import json
import re
from functools import cache
from pathlib import Path

import brotli

from scangolf.config import RunConfig, to_dict
from scangolf.submission.bundle import bundle

LOADER = Path(__file__).with_name("loader.py")
HEAD = '''"""{title}, in one file.

    python train_gpt.py --data DIR --out RUN          # torchrun for several processes
    python train_gpt.py --data DIR --eval ARTIFACT
    python train_gpt.py --source DIR                  # writes the modules out

It needs {libraries}. The modules below are those of scangolf,
each in its own string and word for word, the ones that it is made of before it.
"""

'''
TAIL = """
Loader(f"{__file__}/")

if __name__ == "__main__" and sys.argv[1:2] == ["--source"]:
    write_sources(sys.argv[2])
elif __name__ == "__main__":
    from scangolf.submission.script import main

    main(FILES["config.json"], __file__)
"""


def train_gpt(config: RunConfig, *, packed: bool) -> bytes:
    """The script that makes a run of this configuration; the same for the same package."""
    if packed:
        return _packed(config, quality=11)
    found = bundle(config.model.layers)
    head = HEAD.format(title=_title(config), libraries=", ".join(sorted(found.libraries)))
    return _readable(head, _loader(), _files(config)).encode()


def code_bytes(config: RunConfig) -> int:
    """The bytes of code that count for a run: its script's, packed."""
    return len(train_gpt(config, packed=True))


def code_bytes_at_most(config: RunConfig) -> int:
    """A bound of `code_bytes` that is up to 10 % higher and takes a tenth of the time."""
    return len(_packed(config, quality=9))


def _files(config: RunConfig) -> dict[str, str]:
    """The configuration and the modules, by path."""
    text = json.dumps(to_dict(config), indent=2) + "\n"
    return {"config.json": text} | bundle(config.model.layers).files


def _loader() -> str:
    return LOADER.read_text(encoding="utf-8").split('"""\n\n', 1)[1]


def _title(config: RunConfig) -> str:
    return f"A language model of {config.model.n_layers} blocks, {config.model.pattern}"


def _readable(head: str, loader: str, files: dict[str, str]) -> str:
    parts = [head, loader]
    for path, text in files.items():
        if "'''" in text or text.endswith("'"):
            raise ValueError(f"{path} cannot stand between ''': use double quotes there")
        banner = f"\n\n# {'-' * (97 - len(path))} {path}" if text else ""
        literal = f"r'''{text}'''" if text else '""'
        parts.append(f'{banner}\nFILES["{path}"] = {literal}')
    return "".join([*parts, "\n\n", TAIL])


def _packed(config: RunConfig, quality: int) -> bytes:
    """The loader, and one string that holds all files, without comments and compressed."""
    small = {path: _minified(path, text) for path, text in _files(config).items()}
    text = json.dumps(small, ensure_ascii=False, separators=(",", ":"))
    content = brotli.compress(text.encode(), quality=quality, lgwin=24)
    unpacking = (
        "import base64, json, brotli\n"
        "FILES.update(json.loads(brotli.decompress("
        f'base64.b85decode("{base64.b85encode(content).decode()}"))))\n'
    )
    return (_minified("loader.py", _loader()) + "\n" + unpacking + TAIL).encode()


@cache  # the scripts of several presets share most files
def _minified(path: str, text: str) -> str:
    """The same program in fewer characters; names and annotations stay."""
    if path.endswith(".json"):
        return json.dumps(json.loads(text), separators=(",", ":"))
    if path.endswith(".cu"):
        without = re.sub(r"//.*|/\*[\s\S]*?\*/", "", text)
        return "\n".join(line.strip() for line in without.splitlines() if line.strip())
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                kept = [s for s in statements if not _is_docstring(s)]
                setattr(node, name, kept or [ast.Pass()] * bool(statements))
    return ast.unparse(tree)


def _is_docstring(statement: ast.stmt) -> bool:
    """Whether a statement is only a string: a comment to the machine."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
