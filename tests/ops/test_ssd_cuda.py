"""The CUDA kernels of the SSD scan on an NVIDIA GPU, against the recurrence in float64."""

from typing import Any, NamedTuple

import pytest
import torch
from scan_cases import as_float64, documents, relative_error
from ssd_cases import OPTIONAL, make_ssd_inputs, ssd_outputs_and_gradients
from torch import Tensor, library

from scangolf.ops import ssd, ssd_scan
from scangolf.ops.ssd_backends import choose_backend

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.cuda is None, reason="needs an NVIDIA GPU"
)

BF16, F16 = torch.bfloat16, torch.float16
LIMITS = {BF16: (5e-3, 1.5e-2), F16: (1e-3, 3e-3)}
STARTS = (1, 5, 63, 64, 65, 127, 200, 256, 257, 500)  # of documents
SEQUENCES = ("x", "dt", "B", "C", "z")


class Case(NamedTuple):
    length: int
    heads: int = 4
    head_dim: int = 64
    state: int = 64
    groups: int | None = None
    batch: int = 2
    documents: bool = False
    optional: tuple[str, ...] = OPTIONAL

    @property
    def options(self) -> dict[str, Any]:
        if not self.documents:
            return {}
        return {"seq_idx": documents(self.batch, self.length, *STARTS).cuda()}


CASES = [
    Case(1),
    Case(63, documents=True),
    Case(64, 140),  # heads enough for a block to keep whole ones
    Case(65, 16, groups=2, batch=12),
    Case(1000, documents=True),
    Case(300, 3, 32, 32, groups=3, documents=True),
    Case(200, 2, 128, 16),
    Case(200, 70, 128, 128, groups=2, documents=True),
    Case(130, 2, 32, 256),
    Case(130, 5, 80, 64),
    Case(1337, 16, batch=1, optional=()),
    *(Case(100, optional=(name,)) for name in OPTIONAL),
]


def inputs(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Numbers that bfloat16 has, so that every dtype gets the same."""
    shape = case.batch, case.length, case.heads, case.head_dim, case.state, case.groups
    x = make_ssd_inputs(*shape, BF16, case.optional)
    return {
        k: v.detach().to("cuda", dtype if k in SEQUENCES else torch.float32).requires_grad_()
        for k, v in x.items()
    }


def scan(**x: Any) -> Any:
    return ssd_scan(**x, backend="cuda")


def reference(**x: Any) -> Any:
    return ssd_scan(**x, backend="reference")


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_float64(case: Case, dtype):
    """Whatever memory held before is NaN: what is not written shows."""
    x = inputs(case, dtype)
    want = ssd_outputs_and_gradients(reference, as_float64(x), **case.options)
    _ = [torch.full((1 << 22,), torch.nan, device="cuda") for _ in range(8)]
    del _
    got = ssd_outputs_and_gradients(scan, x, **case.options)
    for name, value in got.items():
        limit = LIMITS[dtype][name not in ("y", "final")]
        assert relative_error(value, want[name]) < limit, name


def test_strong_decays_stay_finite():
    x = inputs(Case(200), BF16)
    with torch.no_grad():
        x["A"][0] = -1e4
    want = ssd_outputs_and_gradients(reference, as_float64(x))
    for name, value in ssd_outputs_and_gradients(scan, x).items():
        assert relative_error(value, want[name]) < LIMITS[BF16][name not in ("y", "final")], name


def test_strided_inputs_and_the_same_bits_every_time():
    x = inputs(Case(300, groups=2), BF16)
    names = ("x", "B", "C")
    wide = torch.cat([x[k].detach().flatten(2) for k in names], dim=2)
    parts = wide.split([x[k][0, 0].numel() for k in names], dim=2)
    strided = {
        k: part.view(*part.shape[:2], *x[k].shape[2:]).requires_grad_()
        for k, part in zip(names, parts, strict=True)
    }
    got, again, want = (ssd_outputs_and_gradients(scan, x | v) for v in (strided, strided, {}))
    for name in want:
        assert torch.equal(got[name], again[name]), name
        assert torch.equal(got[name], want[name]), name


def test_one_step_after_another_is_the_whole():
    x = {k: v.detach() for k, v in inputs(Case(200), BF16).items()}
    whole = scan(**x, dt_softplus=True)
    state, parts = x.pop("initial_state"), []
    for steps in (slice(0, 70), slice(70, 71), slice(71, 200)):
        part = {k: v[:, steps] if k in SEQUENCES else v for k, v in x.items()}
        y, state = scan(**part, dt_softplus=True, initial_state=state, return_final_state=True)
        parts.append(y)
    assert relative_error(torch.cat(parts, 1), whole) < 5e-3


def test_opcheck():
    x = inputs(Case(70, optional=("D", "dt_bias", "initial_state")), BF16)
    x = {k: v.unsqueeze(2).detach() if k in "BC" else v.detach() for k, v in x.items()}
    x = {k: v.requires_grad_() for k, v in x.items()}
    args = (*(x[k] for k in list(x)[:-1]), True, 64, x["initial_state"], None, "cuda")
    library.opcheck(ssd._scan, args)


def test_compiles_as_one_graph():
    def loss(**x: Any) -> Tensor:
        return scan(**x, dt_softplus=True).float().square().mean()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True)
    for length in (100, 130):
        x = inputs(Case(length, optional=("D", "z", "dt_bias")), BF16)
        got, want = (torch.autograd.grad(f(**x), list(x.values())) for f in (compiled, loss))
        for name, a, b in zip(x, got, want, strict=True):
            assert relative_error(a, b.double()) < 5e-3, name


def test_auto_takes_them_where_they_can():
    fit, unfit = inputs(Case(5), BF16), inputs(Case(5, state=48), BF16)
    for x, want in ((fit, "cuda"), (unfit, "triton")):
        assert choose_backend("auto", x["x"], x["A"], x["B"].unsqueeze(2)) == want
    with pytest.raises(ValueError, match="they take states of 16, 32, 64, 128, 256, not 48"):
        scan(**unfit)
