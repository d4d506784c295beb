"""The gated delta rule as a torch operator, and what it says of mistakes."""

import pytest
import torch
from gdn_cases import SEQUENCES, assert_equal_results, make_inputs, outputs_and_gradients
from scan_cases import documents
from torch import library

from scangolf.ops import gated_delta_rule, gated_delta_step, gdn

# --- as a torch operator ------------------------------------------------------------------------


@pytest.mark.parametrize("with_options", [True, False], ids=["all options", "no option"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(with_options, dtype):
    x = make_inputs(length=37, dtype=dtype, initial=with_options)
    seq_idx = documents(2, 37, 7) if with_options else None
    tensors = [x[name] for name in SEQUENCES]
    rule_args = (*tensors, 16, x.get("initial_state"), seq_idx, "reference")
    library.opcheck(gdn._rule, rule_args)
    o, final, saved = (v.detach() for v in gdn._rule(*rule_args))
    tensors = [v.detach() for v in tensors]
    for grad_final in (final, None):
        back_args = (o, grad_final, saved, *tensors, 16, seq_idx, "reference")
        library.opcheck(gdn._rule_backward, back_args)


@pytest.mark.parametrize("length", [0, 1, 16, 40])
def test_results_share_no_memory_and_are_contiguous(length):
    x = {k: v.detach() for k, v in make_inputs(length=length).items()}
    tensors, state = [x[name] for name in SEQUENCES], x["initial_state"]
    results = gdn._rule(*tensors, 16, state, None, "reference")
    o, final, saved = results
    grads = gdn._rule_backward(o, final, saved, *tensors, 16, None, "reference")
    everything = [*x.values(), *results, *grads]
    places = [v.untyped_storage().data_ptr() for v in everything if v.numel()]
    assert len(set(places)) == len(places)
    assert all(v.is_contiguous() for v in (*results, *grads))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    def rule(**x):
        return gated_delta_rule(**x)

    torch.compiler.reset()
    compiled = torch.compile(rule, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for length in (40, 65):
        x, seq_idx = make_inputs(length=length), documents(2, length, 20)
        assert_equal_results(
            *(outputs_and_gradients(f, x, seq_idx=seq_idx) for f in (compiled, gated_delta_rule))
        )


def test_a_step_compiles_as_one_graph():
    x = {k: v.detach() for k, v in make_inputs(length=1).items()}
    now = [x["initial_state"], *(x[name][:, 0] for name in SEQUENCES)]
    compiled = torch.compile(gated_delta_step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*now), gated_delta_step(*now))


def test_autocast_changes_nothing():
    x = make_inputs(dtype=torch.float32)
    want = outputs_and_gradients(gated_delta_rule, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = outputs_and_gradients(gated_delta_rule, x)
    assert all(torch.equal(got[name], want[name]) for name in want)


# --- mistakes -----------------------------------------------------------------------------------

AXES = r"\[batch, length, heads, key_dim\]"
MISTAKES = [
    ({"q": torch.zeros(2, 5, 3)}, rf"q has shape \(2, 5, 3\): expected {AXES}"),
    ({"k": torch.zeros(2, 5, 3, 4)}, r"k has shape \(2, 5, 3, 4\): expected \(2, 5, 3, 5\)"),
    ({"v": torch.zeros(2, 5, 21)}, r"v has shape \(2, 5, 21\): expected \[.*, value_dim\]"),
    ({"v": torch.zeros(2, 5, 1, 7)}, r"v has shape \(2, 5, 1, 7\): expected \(2, 5, 3, 7\)"),
    ({"g": torch.zeros(2, 5, 3, 1)}, r"g has shape \(2, 5, 3, 1\): expected \(2, 5, 3\)"),
    ({"beta": torch.zeros(2, 5)}, r"beta has shape \(2, 5\): expected \(2, 5, 3\)"),
    ({"beta": torch.zeros(2, 5, 3).int()}, "beta has dtype torch.int32: expected a floating"),
    ({"g": torch.zeros(2, 5, 3).double()}, "g has dtype torch.float64, q has torch.float32"),
    ({"initial_state": torch.zeros(2, 3, 7, 5)}, r"initial_state has shape \(2, 3, 7, 5\): exp"),
    ({"seq_idx": torch.zeros(2, 5)}, "seq_idx has dtype torch.float32: expected torch.int32"),
    ({"seq_idx": torch.zeros(2, 4).int()}, r"seq_idx has shape \(2, 4\): expected \(2, 5\)"),
    ({"q": torch.zeros(2, 5, 3, 5, device="meta")}, "k is on cpu: expected meta, where q is"),
    ({"chunk_size": 0}, "chunk_size is 0: expected one step at least"),
    ({"backend": "gpu"}, "backend is 'gpu': expected 'auto', 'triton' or 'reference'"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_told_in_one_line(change, message):
    x = make_inputs(length=5, dtype=torch.float32)
    with pytest.raises(ValueError, match=message) as error:
        gated_delta_rule(**(x | change))
    assert "\n" not in str(error.value)


def test_mistakes_of_a_step():
    x = make_inputs(length=1, dtype=torch.float32)
    now = {name: x[name][:, 0] for name in SEQUENCES}
    with pytest.raises(ValueError, match=r"state has shape \(3, 5, 7\): expected \(2, 3, 5, 7\)"):
        gated_delta_step(torch.zeros(3, 5, 7), **now)
    with pytest.raises(ValueError, match=r"g has shape \(2,\): expected \(2, 3\)"):
        gated_delta_step(x["initial_state"], **(now | {"g": torch.zeros(2)}))
