"""Plans: what they resolve to, and that every mistake in them is named before anything starts."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from scangolf.cli.experiments import ablate
from scangolf.config import AttentionConfig, GDNConfig, RunConfig, S6Config, SSDConfig
from scangolf.data.shards import open_dataset
from scangolf.errors import UserError
from scangolf.experiments.plan import SHIPPED, find_plan, read_plan, resolve
from scangolf.experiments.trial import try_out
from scangolf.model import HybridLM
from scangolf.recipes import PRESETS
from scangolf.settings import checked, with_settings


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text('preset = "tiny"\nseeds = [1, 2]\n' + text)
    return path


def test_settings_are_those_of_the_command_line() -> None:
    settings = checked({"batch.micro-tokens": 512, "seconds": 3, "model.s6.d_state": 4})
    assert settings == {"batch.micro_tokens": 512, "seconds": 3.0, "model.s6.d_state": 4}
    assert type(settings["seconds"]) is float
    config = with_settings(PRESETS["tiny"](), settings)
    assert (config.batch.micro_tokens, config.seconds, config.model.s6.d_state) == (512, 3.0, 4)
    assert config.batch.seq_len == PRESETS["tiny"]().batch.seq_len


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.d_modle", 64, "model.d_modle: no such setting; did you mean model.d_model?"),
        ("model.s6", 3, "model.s6: no such setting"),
        ("model.d_model", "64", "model.d_model = '64': needs a whole number"),
        ("model.d_model", 64.0, "model.d_model = 64.0: needs a whole number"),
        ("model.n_layers", True, "needs a whole number"),
        ("compile", 1, "compile = 1: needs true or false"),
        ("seconds", "long", "seconds = 'long': needs a number"),
        ("schedule.kind", "cosine", "needs one of share, challenge"),
        ("model.pattern", 3, "needs text in quotes"),
        ("steps", 0.5, "steps = 0.5: needs a whole number"),
    ],
)
def test_wrong_names_and_types(name: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=r".") as error:
        checked({"batch.tokens": 2048, name: value})
    assert message in str(error.value)


def test_variants_with_what_is_common(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "steps = 7\n[settings]\nmodel.d_model = 64\n"
        '[variants.a]\n[variants.b]\nmodel.pattern = "attention"\nmodel.d_model = 32\n',
    )
    plan = read_plan(path)
    resolved = resolve(plan, data="elsewhere")
    assert (plan.name, plan.seeds, resolved.problems) == ("plan", (1, 2), {})
    a, b = resolved.configs["a"], resolved.configs["b"]
    assert (a.model.d_model, b.model.d_model, b.model.pattern) == (64, 32, "attention")
    assert (a.steps, a.seed, a.data, a.preset) == (7, 1, "elsewhere", "tiny")
    timed = resolve(plan, seconds=5.0).configs["a"]
    assert (timed.steps, timed.seconds) == (None, 5.0)


def test_a_variant_may_start_from_another_preset(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "steps = 7\n[settings]\nmodel.d_model = 64\n[variants.a]\n"
        '[variants.b]\npreset = "baseline"\nmodel.n_layers = 3\n'
        '[variants.c]\npreset = "base"\n',
    )
    resolved = resolve(read_plan(path))
    common = {"steps": 7, "seed": 1, "model.d_model": 64}
    assert resolved.configs == {
        "a": with_settings(PRESETS["tiny"](), common),
        "b": with_settings(PRESETS["baseline"](), common | {"model.n_layers": 3}),
    }
    assert resolved.problems["c"].startswith("preset = 'base': needs one of tiny, baseline")
    axes = resolve(read_plan(write(tmp_path, '[axes]\npreset = ["tiny", "hybrid"]\n'))).configs
    assert [config.preset for config in axes.values()] == ["tiny", "hybrid"]


def test_axes_multiply_the_variants(tmp_path: Path) -> None:
    axes = '[axes]\nmodel.s6.d_state = [4, 8]\nmodel.pattern = ["s6", "3 s6 : 1 attention"]\n'
    names = [
        "d_state=4,pattern=s6", "d_state=4,pattern=3-s6-1-attention",
        "d_state=8,pattern=s6", "d_state=8,pattern=3-s6-1-attention",
    ]  # fmt: skip
    assert [*read_plan(write(tmp_path, axes)).variants] == names
    plan = read_plan(write(tmp_path, "[variants.wide]\nmodel.s6.expand = 3\n[variants.x]\n" + axes))
    assert [*plan.variants] == [f"wide,{n}" for n in names] + [f"x,{n}" for n in names]
    assert plan.variants["wide,d_state=4,pattern=s6"] == {
        "model.s6.expand": 3, "model.s6.d_state": 4, "model.pattern": "s6",
    }  # fmt: skip


def test_axes_of_the_same_last_name_are_called_by_their_whole_name(tmp_path: Path) -> None:
    axes = "[axes]\nmodel.s6.d_state = [4]\nmodel.ssd.d_state = [8]\n"
    assert [*read_plan(write(tmp_path, axes)).variants] == [
        "model.s6.d_state=4,model.ssd.d_state=8"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[variant.a]\n", "variant: no such key of a plan; did you mean variants?"),
        ("", "nothing to compare"),
        ("variants = 3\n", "variants = 3: needs a table"),
        ("[variants]\na = 3\n", "variants.a = 3: needs a table"),
        ("[axes]\nmodel.d_model = 64\n", "axes.model.d_model = 64: needs a list"),
        ("steps = 3\nseconds = 3\n[variants.a]\n", "a plan has one budget"),
        ("steps = 'three'\n[variants.a]\n", "steps = 'three': needs a whole number"),
        ("[settings]\nmodel.d_modle = 3\n[variants.a]\n", "settings: model.d_modle"),
        ("[settings]\nseconds = 3\n[variants.a]\n", "seconds: is the same for all variants"),
        ("[settings]\npreset = 'tiny'\n[variants.a]\n", "preset: is no setting of all runs"),
        ('[variants."../a"]\n', "variants.../a: names a folder"),
        (f"[variants.{'a' * 256}]\n", "names a folder; use letters"),
        (
            "[variants.a]\nmodel.d_model = 64\n[axes]\nmodel.d_model = [64]\n",
            "variant a sets it too",
        ),
        ("[axes]\nmodel.pattern = ['s6:attention', 's6, attention']\n", "two variants would be"),
        ("[variants.a\n", "not TOML"),
    ],
)
def test_what_is_no_plan(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=r".") as error:
        read_plan(write(tmp_path, text))
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "plan.toml"))


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ("seeds = [1]\n", "preset = None: needs one of tiny, baseline"),
        ('preset = "tinny"\nseeds = [1]\n', "preset = 'tinny'"),
        ('preset = ["tiny"]\nseeds = [1]\n', "preset = ['tiny']: needs one of tiny"),
        ('preset = "tiny"\n', "seeds = None: needs different whole numbers"),
        ('preset = "tiny"\nseeds = [1, 1]\n', "seeds = [1, 1]"),
        ('preset = "tiny"\nseeds = []\n', "seeds = []"),
        ('preset = "tiny"\nseeds = [true]\n', "seeds = [True]"),
        (f'preset = "tiny"\nseeds = [{2**63}]\n', "needs different whole numbers of 64 bits"),
    ],
)
def test_what_every_plan_needs(tmp_path: Path, top: str, message: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(top + "[variants.a]\n")
    with pytest.raises(UserError) as error:
        read_plan(path)
    assert message in str(error.value)


def test_all_bad_variants_are_found_and_good_ones_kept(tmp_path: Path) -> None:
    plan = read_plan(
        write(
            tmp_path,
            "[variants.good]\n"
            "[variants.typo]\nmodel.s6.d_sate = 4\nmodel.d_model = 'wide'\n"
            "[variants.heads]\nmodel.d_model = 100\n"
            "[variants.unread]\nmodel.ssd.d_state = 32\n"
            "[variants.twin]\nmodel.s6.d_state = 8\n"
            "[variants.own-seed]\nseed = 3\n",
        )
    )
    resolved = resolve(plan)
    assert [*resolved.configs] == ["good"]
    wanted = {
        "typo": "model.s6.d_sate: no such setting; did you mean model.s6.d_state?; "
        "model.d_model = 'wide': needs a whole number",
        "heads": "--model.d-model 100: needs a multiple of twice the 4 attention heads",
        "unread": "model.ssd.d_state: has no effect",
        "twin": "is good under another name",
        "own-seed": "seed: is the same for all variants; set seeds",
    }
    assert resolved.problems.keys() == wanted.keys()
    for variant, message in wanted.items():
        assert message in resolved.problems[variant]
        assert "\n" not in resolved.problems[variant]


def test_the_help_names_the_plans_of_the_package() -> None:
    assert ablate.__doc__ is not None
    assert all(path.stem in ablate.__doc__ for path in SHIPPED.glob("*.toml"))


def test_plans_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    assert find_plan("seed-ablation").name == "seed-ablation.toml"
    path = write(tmp_path, "[variants.a]\n")
    assert find_plan(str(path)) == path
    with pytest.raises(UserError, match=r"seed-ablations: no such plan.*, seed-ablation"):
        find_plan("seed-ablations")


# --- the plans that come with the package -------------------------------------------------------


def architecture(config: RunConfig) -> str:
    if config.model.loops > 1:
        return "shared depth"
    (kind,) = set(config.model.layers) - {"attention"} or {"attention"}
    return kind


def test_the_published_ablation_is_22_variants_of_7_architectures() -> None:
    plan = read_plan(find_plan("seed-ablation"))
    resolved = resolve(plan)
    assert resolved.problems == {}
    assert Counter(map(architecture, resolved.configs.values())) == {
        "attention": 2, "s6": 8, "ssd": 4, "gdn": 2, "lti": 2, "parallel": 1, "shared depth": 3,
    }  # fmt: skip
    assert len(plan.variants) == 22
    assert len(plan.seeds) >= 3
    budgets = {(config.seconds, config.steps) for config in resolved.configs.values()}
    assert budgets == {(180.0, None)}


@pytest.mark.parametrize(("plan_name", "changes"), [
    ("hybrid-against-attention", {}),
    (
        "hybrid-against-attention-60s",
        {"seconds": 60.0, "optim.weight_decay": 0.1, "model.mlp_width": 1536},
    ),
])  # fmt: skip
def test_hybrid_and_attention_are_as_large_and_as_their_presets(
    plan_name: str, changes: dict[str, Any]
) -> None:
    plan = read_plan(find_plan(plan_name))
    configs = resolve(plan).configs
    assert configs.keys() == plan.variants.keys()
    assert len(plan.seeds) >= 3
    for name, config in configs.items():
        same = {"preset": "hybrid", "data": config.data, "seed": plan.seeds[0]}
        length = {"batch.seq_len": 4096} if name.endswith("-4096") else {}
        preset = PRESETS[name.removesuffix("-4096")]()
        assert config == with_settings(preset, same | length | changes)
    with torch.device("meta"):
        sizes = [HybridLM(config.model, seed=None).n_parameters for config in configs.values()]
    assert max(sizes) < 1.02 * min(sizes)


SMALL: dict[str, Any] = {
    "d_model": 32,
    "mlp_width": 32,
    "vocab_size": 300,
    "attention": AttentionConfig(n_heads=4, n_kv_heads=2),
    "s6": S6Config(d_state=4, dt_rank=2),
    "ssd": SSDConfig(d_state=8, head_dim=8),
    "gdn": GDNConfig(n_heads=2, key_dim=8, value_dim=8),
}


SHIPPED_VARIANTS = [
    (path.stem, variant)
    for path in sorted(SHIPPED.glob("*.toml"))
    for variant in read_plan(path).variants
]


@pytest.mark.parametrize(("plan", "variant"), SHIPPED_VARIANTS)
def test_every_variant_runs_forward_and_backward(plan: str, variant: str, dataset: Path) -> None:
    """With its own layers, blocks and loops, at a width that a test can afford."""
    config = resolve(read_plan(find_plan(plan)), data=str(dataset)).configs[variant]
    model = dataclasses.replace(config.model, **SMALL)
    batch = dataclasses.replace(config.batch, seq_len=64)
    config = dataclasses.replace(config, model=model, batch=batch, device="cpu")
    room = try_out(config, lambda folder: open_dataset(Path(folder)))
    assert room.parameters == HybridLM(model, seed=None).n_parameters
    assert room.uncompressed_bytes > room.parameters
