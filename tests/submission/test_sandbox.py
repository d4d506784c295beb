"""A script in its sandbox: what it may reach, and that what it leaves behind is read with care."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scangolf.submission.rules.sandbox import (
    NAMESPACE,
    ScriptRun,
    evaluate_script,
    read_sources,
)


def run_script(script: bytes, folder: Path) -> ScriptRun:
    artifact = folder / "artifact.sg"
    artifact.touch()
    return evaluate_script(script, artifact, lambda _: None, 30)


def unshares() -> bool:
    """Whether the kernel permits a network namespace, whatever the package makes of it."""
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not unshares(), reason="no network namespaces here")
def test_a_namespace_of_its_own_has_no_network() -> None:
    code = "import socket; print(socket.if_nameindex())"
    command = [*NAMESPACE, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [name for _, name in eval(done.stdout)] == ["lo"]


@pytest.mark.skipif(not unshares(), reason="no network namespaces here")
def test_processes_of_one_machine_may_talk(tmp_path: Path) -> None:
    """Over the loopback, as those of torch.distributed do; it is up in the namespace as well."""
    script = b"""
import json, socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname(), timeout=5)
client.sendall(b"1.5")
socket.getfqdn()
print(json.dumps({"val_bpb": float(server.accept()[0].recv(3))}))
"""
    run = run_script(script, tmp_path)
    assert (run.result, run.last_words) == ({"val_bpb": 1.5}, "")
    assert (run.isolation, run.network) == ("network namespace and Python hook", ())


def test_only_plain_files_of_what_a_script_writes_are_read(tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("secret = 1")
    script = rf"""
import os
os.chdir("source")
os.makedirs("package/folder.py")
open("package/plain.py", "w").write("x = 1")
open("bytes.py", "wb").write(b"y = '\xff'")
open(b"name-\xff.py", "w").write("z = 1")
os.symlink("nowhere", "dangling.py")
os.symlink({str(tmp_path / "secret.py")!r}, "secret.py")
os.symlink({str(tmp_path)!r}, "elsewhere")
os.mkfifo("pipe.py")
"""
    assert read_sources(script.encode()) == {
        "package/plain.py": "x = 1", "bytes.py": "y = '\ufffd'", "name-?.py": "z = 1",
    }  # fmt: skip
    moved = f"import os; os.rmdir('source'); os.symlink({str(tmp_path)!r}, 'source')"
    assert read_sources(moved.encode()) == {}
    assert read_sources(b"import shutil, os; shutil.rmtree(os.getcwd())") == {}


@pytest.mark.parametrize(
    ("last_line", "result"),
    [
        ("'[' * 100_000", {"val_bpb": 2}),
        ("'1' * 10_000", {"val_bpb": 2}),
        (r"os.write(1, b'\xff\xfe') and ''", {"val_bpb": 2}),
        ("'{\"val_bpb\": 1' + '0' * 400 + '}'", {"val_bpb": 10**400}),
        ("os.unlink('stdout') or os.mkdir('stdout')", None),
    ],
)
def test_output_that_is_no_result(last_line: str, result: object, tmp_path: Path) -> None:
    script = "import os\nprint('{\"val_bpb\": 2}', flush=True)\nprint(" + last_line + ")"
    run = run_script(script.encode(), tmp_path)
    assert (run.exit_code, run.result) == (0, result)


def test_a_log_of_the_hook_that_was_torn(tmp_path: Path) -> None:
    """A process that is ended may be writing a line; what else stands there is still told."""
    script = rb"""
try:
    open(b"of_\xff_train_0.bin")
except PermissionError:
    pass
with open("watch/events.jsonl", "a") as log:
    log.write('["network", "exam\n[1]\n3\n' + "[" * 100_000 + '\n["network", "a host"]\n')
"""
    run = run_script(script, tmp_path)
    assert (run.network, run.training_data) == (("a host",), ("of_?_train_0.bin",))
