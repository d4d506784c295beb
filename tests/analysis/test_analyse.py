"""analysis.json, against the same numbers taken directly."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scangolf.analysis import analyse as module
from scangolf.analysis.analyse import analyse, gates, loss_by_position
from scangolf.analysis.tensors import entropy_bytes
from scangolf.artifact.codec import LENGTHS, PREFIX, read_artifact, save_artifact
from scangolf.artifact.load import load
from scangolf.config import AttentionConfig, ModelConfig, S6Config
from scangolf.data.build import build_dataset
from scangolf.data.shards import Dataset, open_dataset
from scangolf.data.tokenizer import train_tokenizer
from scangolf.model import HybridLM
from scangolf.score.bpb import byte_table
from scangolf.score.evaluate import evaluate

SEQ_LEN = 16
STORY = [f"The owl met {n} hares in wood number {n * n % 97}." for n in range(80)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("analysis")
    splits = [(text, "val" if i % 4 == 0 else "train") for i, text in enumerate(STORY)]
    build_dataset(splits, train_tokenizer(STORY, 300), folder, "story")  # type: ignore[arg-type]
    return open_dataset(folder)


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> HybridLM:
    config = ModelConfig(
        vocab_size=dataset.tokenizer.vocab_size, d_model=32, n_layers=5, mlp_width=160,
        pattern="s6 : attention : s6 : s6 : attention", embed_std=0.5,
        attention=AttentionConfig(n_heads=2, n_kv_heads=1), s6=S6Config(d_state=2, dt_rank=2),
    )  # fmt: skip
    model = HybridLM(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def artifact(model: HybridLM, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "artifact.sg"
    groups = model.parameter_groups()
    state = dict(model.named_parameters())
    save_artifact(path, state, groups, model.config, dataset.tokenizer, "int8-brotli")
    return path


def test_loss_by_position_is_the_loss_of_each_target(model: HybridLM, dataset: Dataset) -> None:
    found = loss_by_position(model, dataset, SEQ_LEN)
    tokens = dataset.val_tokens().astype(np.int64)
    count = (len(tokens) - 1) // SEQ_LEN
    table = byte_table(dataset.tokenizer)
    nats, n_bytes = np.zeros((count, SEQ_LEN)), np.zeros((count, SEQ_LEN))
    for i in range(count):
        row = tokens[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1]
        with torch.no_grad():
            log_p = model(torch.from_numpy(row[:-1])[None])[0].double().log_softmax(-1)
        for j in range(SEQ_LEN):
            nats[i, j] = -float(log_p[j, row[j + 1]])
            n_bytes[i, j] = table.count(row[j : j + 1], row[j + 1 : j + 2])[0]
    assert found["targets"] == found["split_targets"] == count * SEQ_LEN
    np.testing.assert_allclose(found["nats"], nats.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["bytes"], n_bytes.mean(0), rtol=1e-12)
    score = evaluate(model, dataset.val_tokens(), table, seq_len=SEQ_LEN)
    assert sum(found["nats"]) / math.log(2) / sum(found["bytes"]) == pytest.approx(score.bpb)


def test_a_large_split_is_sampled_evenly(
    model: HybridLM, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loss_by_position(model, dataset, SEQ_LEN)
    monkeypatch.setattr(module, "TARGETS", 3 * SEQ_LEN)
    found = loss_by_position(model, dataset, SEQ_LEN)
    assert (found["targets"], found["split_targets"]) == (3 * SEQ_LEN, whole["targets"])
    tokens = dataset.val_tokens().astype(np.int64)
    count = whole["targets"] // SEQ_LEN
    losses = []
    for start in (0, count // 3 * SEQ_LEN, 2 * count // 3 * SEQ_LEN):
        row = torch.from_numpy(tokens[start : start + SEQ_LEN + 1])[None]
        with torch.no_grad():
            losses.append(model(row[:, :-1], row[:, 1:])[0].numpy())
    np.testing.assert_allclose(found["nats"], np.mean(losses, axis=0), rtol=1e-5)


def test_gates_and_where_skips_come_from(model: HybridLM) -> None:
    found = {(g["gate"], g["block"]): g for g in gates(model)}
    assert len(found) == 5 * 4 + 2
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    values = weights["blocks.3.mlp.down.gain"]
    assert found["mlp_gain", 3]["quantiles"][2] == pytest.approx(np.median(values))
    embedding = weights["blocks.1.resid_mix"][1]
    assert found["resid_mix_x0", 1]["quantiles"] == pytest.approx(
        np.quantile(embedding, [0.05, 0.25, 0.5, 0.75, 0.95])
    )
    assert [(s["source"], s["block"]) for s in found.values() if "source" in s] == [(1, 2), (0, 3)]


def test_all_of_it_is_json_and_the_bytes_are_the_body(
    model: HybridLM, dataset: Dataset, artifact: Path
) -> None:
    reloaded, _ = load(artifact)
    read = read_artifact(artifact)
    found = analyse(
        read, model, reloaded, dataset, seq_len=SEQ_LEN, steps=7, sample="The owl met 3"
    )
    json.dumps(found, allow_nan=False)
    assert (found["steps"], found["peak_memory_bytes"]) == (7, None)
    assert [(scan["block"], scan["kind"]) for scan in found["scans"]] == [
        (0, "s6"), (2, "s6"), (3, "s6"),
    ]  # fmt: skip
    assert "".join(text for text, _bits in found["sample"]) == "The owl met 3"
    assert "".join(text for text, _bits in found["passage"]) in STORY

    stored = {t["name"]: t for t in found["tensors"]}
    assert stored.keys() == dict(model.named_parameters()).keys()
    content = artifact.read_bytes()
    n_manifest, n_compressed = LENGTHS.unpack_from(content, PREFIX.size)
    manifest = json.loads(content[PREFIX.size + LENGTHS.size :][:n_manifest])
    sizes = {"int8/bfloat16": 1, "float16": 2, "float32": 4}
    body = len(dataset.tokenizer.model_bytes)
    for name, shape, coding in manifest["tensors"]:
        n_bytes = sizes[coding] * math.prod(shape) + 2 * shape[0] * (coding == "int8/bfloat16")
        assert (stored[name]["bytes"], stored[name]["coding"]) == (n_bytes, coding)
        body += n_bytes
    assert found["tokenizer_bytes"] + sum(t["bytes"] for t in stored.values()) == body
    # Brotli comes close to the entropy; the tokenizer compresses to between nothing and itself.
    entropy = sum(t["entropy_bytes"] for t in stored.values())
    assert 0.97 * entropy < n_compressed < 1.03 * entropy + found["tokenizer_bytes"]

    state = read.state
    for name, weights in model.named_parameters():
        distance = (state[name] - weights.detach()).norm() / weights.detach().norm()
        assert stored[name]["error"] == pytest.approx(float(distance), rel=1e-4, abs=1e-9)
    assert stored["blocks.0.mlp.up.weight"]["error"] > 1e-4
    assert stored["skip_weights"]["error"] == 0


def test_entropy_by_hand() -> None:
    codes = np.array([0, 0, 1, -1] * 100, np.int8)
    assert entropy_bytes(codes) == pytest.approx(400 * 1.5 / 8)
    # Low bytes all the same, high bytes two that are equally frequent: a bit an element.
    halves = np.array([0x0100, 0x0200] * 100, "<u2")
    assert entropy_bytes(halves) == pytest.approx(200 / 8)
    assert entropy_bytes(halves.view("<f2")) == pytest.approx(200 / 8)
    assert entropy_bytes(np.zeros((3, 4), "<f4")) == 0
    assert entropy_bytes(np.zeros(0, np.int8)) == 0
