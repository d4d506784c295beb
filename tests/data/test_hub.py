"""The download, from a server on this machine that answers as the hub does."""

import hashlib
import json
import re
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from scangolf.data.hub import REPO, download_fineweb
from scangolf.data.shards import open_dataset
from scangolf.data.tokenizer import train_tokenizer
from scangolf.errors import UserError

COMMIT = "c0ffee" + "0" * 34
MODEL = "datasets/tokenizers/fineweb_300_bpe.model"
SHARDS = "datasets/datasets/fineweb10B_sp300"
TOKENIZER = train_tokenizer(["the cat sat on the mat, the hat of the cat"] * 3, 300)


def shard(*documents: int) -> bytes:
    """A shard of documents of so many tokens, written by hand."""
    tokens = [t for n in documents for t in [1] + [4 + i % 200 for i in range(n - 1)]]
    header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
    return header + struct.pack(f"<{len(tokens)}H", *tokens)


class Hub(ThreadingHTTPServer):
    """Serves `files`: the list of a dataset repository, and its files with ranges."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, bytes] = {
            f"{SHARDS}/fineweb_val_000000.bin": shard(40, 25),
            f"{SHARDS}/fineweb_train_000000.bin": shard(20_000, 30_000),
            f"{SHARDS}/fineweb_train_000001.bin": shard(700),
            f"{SHARDS}/fineweb_train_000002.bin": shard(800),
            MODEL: TOKENIZER.model_bytes,
            "datasets/manifest.json": b"{}",
            "datasets/datasets/fineweb10B_byte260/fineweb_val_000000.bin": shard(9),
            "datasets/datasets/fineweb10B_byte260/fineweb_train_000000.bin": shard(9),
        }
        self.listed_hash: dict[str, str] = {}
        self.cut: dict[str, int] = {}
        """Bytes after which the first answer with a file's content ends its connection."""
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha256(self, path: str) -> str:
        return self.listed_hash.get(path, hashlib.sha256(self.files[path]).hexdigest())

    def tree(self) -> list[dict]:
        entries: list[dict] = [{"type": "directory", "path": "datasets/datasets", "oid": "0" * 40}]
        for path, content in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "path": path, "size": len(content), "oid": git}
            if path != MODEL:
                entry["lfs"] = {
                    "oid": self.sha256(path),
                    "size": len(content),
                    "pointerSize": 130,
                }
            entries.append(entry)
        return entries


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub = self.server
        path = self.path.split("?")[0]
        hub.requests.append((self.command, path, self.headers.get("Range")))
        if path == f"/api/datasets/{REPO}":
            self.send(json.dumps({"id": REPO, "sha": COMMIT}).encode(), {})
        elif path == f"/api/datasets/{REPO}/tree/{COMMIT}/datasets":
            self.send(json.dumps(hub.tree()).encode(), {"Content-Type": "application/json"})
        else:
            file = path.removeprefix(f"/datasets/{REPO}/resolve/{COMMIT}/")
            if file not in hub.files:
                self.send(b"", {}, 404)
                return
            content = hub.files[file]
            headers = {
                "ETag": f'"{hub.sha256(file)}"',
                "X-Linked-ETag": f'"{hub.sha256(file)}"',
                "X-Linked-Size": str(len(content)),
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if asked:
                start = int(asked[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                content = content[start:]
            limit = hub.cut.pop(file, None) if self.command == "GET" else None
            self.send(content, headers, 206 if asked else 200, limit)

    def send(
        self, content: bytes, headers: dict[str, str], status: int = 200, limit: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:limit])
        if limit is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path: Path) -> Iterator[Hub]:
    # The client reads its settings when it is imported: here they are changed where they lie.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20_000)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def download(hub: Hub, folder: Path, variant: str = "sp300", train_shards: int = 2):
    return download_fineweb(folder, variant, train_shards, endpoint=hub.url)


def test_a_download_is_a_dataset_folder(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "fineweb"
    manifest = download(hub, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "fineweb_train_000000.bin",
        "fineweb_train_000001.bin",
        "fineweb_val_000000.bin",
        "manifest.json",
        "tokenizer.model",
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["fineweb"]
    listed = manifest.splits["train"] + manifest.splits["val"]
    assert [(s.tokens, s.documents) for s in listed] == [(50_000, 2), (700, 1), (65, 2)]
    assert listed[0].sha256 == hub.sha256(f"{SHARDS}/fineweb_train_000000.bin")
    dataset = open_dataset(folder)
    assert dataset.tokenizer.sha256 == TOKENIZER.sha256
    assert [len(tokens) for tokens in dataset.train] == [50_000, 700]
    expected = np.frombuffer(hub.files[f"{SHARDS}/fineweb_val_000000.bin"], "<u2")[512:]
    np.testing.assert_array_equal(dataset.val_tokens(), expected)
    with pytest.raises(UserError, match="is there already"):
        download(hub, folder)


def test_a_dropped_connection_goes_on_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    file = f"{SHARDS}/fineweb_train_000000.bin"
    hub.cut[file] = 60_000
    download(hub, tmp_path / "fineweb")
    gets = [r for r in hub.requests if r[0] == "GET" and r[1].endswith(file)]
    assert [asked for _, _, asked in gets] == [None, "bytes=60000-"]
    assert (tmp_path / "fineweb" / Path(file).name).read_bytes() == hub.files[file]


def test_a_wrong_hash_is_refused_and_the_next_try_fetches_only_that_file(
    hub: Hub, tmp_path: Path
) -> None:
    file = f"{SHARDS}/fineweb_val_000000.bin"
    right = hub.files[file]
    hub.listed_hash[file] = hub.sha256(file)
    hub.files[file] = right[:-1] + b"\x05"
    with pytest.raises(UserError, match=r"fineweb_val_000000\.bin: arrived damaged"):
        download(hub, tmp_path / "fineweb")
    assert not (tmp_path / "fineweb").exists()
    hub.files[file] = right
    hub.requests.clear()
    download(hub, tmp_path / "fineweb")
    assert [Path(p).name for verb, p, _ in hub.requests if verb == "GET" and "/resolve/" in p] == [
        "fineweb_val_000000.bin",
        "fineweb_300_bpe.model",
    ]


def test_a_wrong_tokenizer_is_refused(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    listing = hub.tree()
    monkeypatch.setattr(hub, "tree", lambda: listing)
    hub.files[MODEL] = TOKENIZER.model_bytes + b"\x00"
    with pytest.raises(UserError, match=r"fineweb_300_bpe\.model: arrived damaged"):
        download(hub, tmp_path / "fineweb")


def test_what_is_not_there_is_named_with_what_is(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--variant byte260: .* choose from sp300"):
        download(hub, tmp_path / "fineweb", variant="byte260")
    with pytest.raises(UserError, match="--train-shards 4: sp300 has 1 to 3"):
        download(hub, tmp_path / "fineweb", train_shards=4)
    assert not (tmp_path / "fineweb").exists()


def test_a_network_failure_is_one_line(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    listing = hub.tree()
    monkeypatch.setattr(hub, "tree", lambda: listing)
    del hub.files[MODEL]
    with pytest.raises(UserError) as caught:
        download(hub, tmp_path / "fineweb")
    assert "could not fetch datasets/tokenizers/fineweb_300_bpe.model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_server_is_one_line(tmp_path: Path) -> None:
    server = Hub()
    url = server.url
    server.server_close()
    with pytest.raises(UserError) as caught:
        download_fineweb(tmp_path / "fineweb", endpoint=url)
    assert "could not fetch the list of its files" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
