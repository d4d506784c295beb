"""Packed code counts as seen only where what a script writes is what its constants hold."""

from __future__ import annotations

import base64
import bz2
import codecs
import gzip
import json
import lzma
import random
import zlib
from collections.abc import Callable

import brotli
import pytest
from code_cases import ADAPTING, MAIN, MODEL, PLAIN, UNCHECKED, findings

from scangolf.recipes import PRESETS
from scangolf.submission.forms import train_gpt
from scangolf.submission.rules.code import TRAINING, check_code
from scangolf.submission.rules.packed import unpacked
from scangolf.submission.rules.sandbox import read_sources
from scangolf.submission.rules.sources import read_script

PACKINGS: dict[str, Callable[[bytes], str | bytes]] = {
    "base 85 of brotli": lambda content: base64.b85encode(brotli.compress(content)).decode(),
    "Ascii85 of LZMA": lambda content: base64.a85encode(lzma.compress(content)).decode(),
    "base 64 of zlib": lambda content: base64.b64encode(zlib.compress(content)).decode(),
    "bytes of gzip": gzip.compress,
    "hexadecimal bzip2": lambda content: bz2.compress(content).hex().upper(),
    "base 64 alone": lambda content: base64.b64encode(content).decode(),
}
NOISE = "".join(f"# {random.Random(0).randbytes(4).hex()} {i}\n" for i in range(1000))
"""Makes a packed text long."""
CLEAN = {"small/run.py": MODEL + PLAIN + MAIN + NOISE, "small/__init__.py": ""}
TRAINS = MODEL + ADAPTING + MAIN


def packed(content: str | bytes | dict[str, str], how: str = "base 85 of brotli") -> str:
    """A script that runs what it has packed, and knows the option to write it."""
    text = json.dumps(content) if isinstance(content, dict) else content
    constant = PACKINGS[how](text.encode() if isinstance(text, str) else text)
    assert len(constant) >= 1000
    return f'OPTION = "--source"\nrun({constant!r})\n'


@pytest.mark.parametrize("how", PACKINGS)
def test_a_packed_script_is_judged_by_the_sources_it_writes(how: str) -> None:
    data = {"config.json": '{"eval": true}', "scan.cu": "__global__ void scan() {}"}
    for content in (CLEAN | data, CLEAN["small/run.py"]):
        script = packed(content, how)
        assert {f.verdict for f in findings(script, CLEAN).values()} == {"pass"}
        for found in findings(script, {}).values():
            assert found.verdict == UNCHECKED
            assert "does not write its sources" in found.why
    without_option = packed(CLEAN, how).replace("--source", "")
    assert {f.verdict for f in findings(without_option).values()} == {UNCHECKED}
    spoilt = {"small/run.py": TRAINS + NOISE}
    assert findings(packed(spoilt, how), spoilt)[TRAINING].verdict == "fail"


def test_the_packages_own_packed_script_shows_all_of_itself() -> None:
    script = train_gpt(PRESETS["tiny"](), packed=True)
    found = check_code(read_script(script, read_sources))
    assert {f.verdict for f in found} == {"pass"}, found


SHOWN = CLEAN["small/run.py"]
HIDING: dict[str, str] = {
    "another module": packed({"small/run.py": SHOWN, "small/other.py": TRAINS}),
    "a module called data": packed({"small/run.py": SHOWN, "notes.txt": "loss.backward()"}),
    "a module by another name": packed({"small/other.py": SHOWN}),
    "the module itself": packed(TRAINS + NOISE),
    "a second constant": packed(CLEAN) + f"run({'x' * 1000!r})\n",
    "what follows the stream": packed(SHOWN, "base 64 alone")
    + f"run({zlib.compress(SHOWN.encode()) + b'x' * 99!r})\n",
    "packed data": packed({"small/run.py": SHOWN, "a.json": json.dumps({"a": "x" * 1000})}),
    "text that is no Python": packed(codecs.encode(TRAINS + NOISE, "rot13")),
    "bytes that are no text": packed(random.Random(0).randbytes(2000)),
}


@pytest.mark.parametrize("script", HIDING.values(), ids=HIDING.keys())
def test_a_script_that_packs_more_than_it_writes_is_left_open(script: str) -> None:
    """Whatever innocent module it writes."""
    for found in findings(script, CLEAN).values():
        assert found.verdict == UNCHECKED
        assert "packed constants, more than the sources it writes" in found.why


def test_sources_that_are_packed_again_are_left_open() -> None:
    twice = {"small/run.py": SHOWN + f"run({'x' * 1000!r})\n"}
    assert {f.verdict for f in findings(packed(twice), twice).values()} == {UNCHECKED}


def test_a_text_that_swells_without_end_is_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scangolf.submission.rules.packed.LIMIT", 1 << 16)
    for compress in (brotli.compress, gzip.compress, bz2.compress, lzma.compress):
        assert list(unpacked(compress(b" " * (1 << 24)))) == []
        assert list(unpacked(compress(b" " * 1000))) == [" " * 1000]
