"""Watches the Python it is started with: no network, no training shards.

It runs as `sitecustomize` in a process of somebody else's script, and in the Python processes that
one starts. It imports the standard library only, and notes in `events.jsonl` beside it every
attempt, which it also refuses, and at the end the installed packages that were imported.
"""

import atexit
import ipaddress
import json
import os
import sys
import sysconfig

_HERE = os.path.dirname(os.path.abspath(__file__))
_CONNECTS = ("socket.connect", "socket.sendto", "socket.sendmsg")
_LOOKS_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
# Processes of one machine look up its own name, as torchrun does.
_THIS_MACHINE = ("localhost", os.uname().nodename)


def _note(kind: str, what: str) -> None:
    with open(os.path.join(_HERE, "events.jsonl"), "a", encoding="utf-8") as log:
        log.write(json.dumps([kind, what]) + "\n")


def _refuse(event: str, args: tuple) -> None:
    if event == "open" and isinstance(args[0], str | bytes):
        name = os.path.basename(os.fsdecode(args[0]))
        if "_train_" in name and name.endswith(".bin"):
            _note("training data", os.fsdecode(args[0]))
            raise PermissionError(f"{name}: an evaluation must not read training data")
    elif event in _CONNECTS and isinstance(args[1], tuple):
        _refuse_host(event, args[1][0])
    elif event in _LOOKS_UP:
        _refuse_host(event, args[0])


def _refuse_host(event: str, host: object) -> None:
    if host and str(host) not in _THIS_MACHINE and not _is_loopback(str(host)):
        _note("network", f"{event} {host}")
        raise OSError(f"{host}: an evaluation must not use the network")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _note_packages() -> None:
    installed = [os.path.realpath(sysconfig.get_path(key)) for key in ("purelib", "platlib")]
    standard = os.path.realpath(sysconfig.get_path("stdlib"))
    found = set()
    for name, module in list(sys.modules.items()):
        file = os.path.realpath(getattr(module, "__file__", None) or _HERE)
        own = file.startswith(_HERE + os.sep) or not os.path.isfile(file)
        if own or (file.startswith(standard) and not file.startswith(tuple(installed))):
            continue
        found.add(name.partition(".")[0])
    for name in sorted(found - {"__main__"}):
        _note("package", name)


if __name__ == "sitecustomize":
    sys.addaudithook(_refuse)
    atexit.register(_note_packages)
