"""The optimiser: Muon for the blocks' matrices, Adam for the rest, in explicit groups.

Muon (Jordan et al. 2024) replaces a matrix's momentum by its nearest semi-orthogonal matrix,
found by Newton-Schulz iteration. All matrices of one shape are orthogonalised in one batch, and
several processes share the matrices out among them.

Shapes: M matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, _foreach_add_, _foreach_mul_  # pyright: ignore[reportPrivateImportUsage]

from scangolf.config import OptimConfig
from scangolf.model import HybridLM
from scangolf.train.shares import Shares
from scangolf.train.world import ALONE, World

GROUPS = ("matrix", "embedding", "head", "vector", "dynamics", "frozen")

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that drives every singular value towards 1 (Jordan et al. 2024)."""


def orthogonalise(G_MRC: Tensor, steps: int) -> Tensor:
    """The semi-orthogonal matrix near each of a batch: singular values end within about 0.7-1.2.

    bf16 on a GPU, where it is fast and accurate enough; float32 elsewhere.
    """
    a, b, c = NEWTON_SCHULZ
    X = G_MRC.to(update_dtype(G_MRC.device))
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT
    X = X / (torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X.mT if tall else X


def update_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


class Muon:
    """Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / columns)).

    Weight decay is decoupled from it, as in AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Each process of `world` has the momentum of its own share of the matrices, and computes their
    updates for all.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], config: OptimConfig, world: World = ALONE
    ) -> None:
        self.config = config
        self.step_count = 0
        by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters.values():
            by_shape[parameter.shape].append(parameter)
        self.batches = list(by_shape.values())
        self.matrices = [matrix for batch in self.batches for matrix in batch]
        self.shares = Shares(self.matrices, world)
        owned = iter(self.shares.owned)
        self.own = [[i for i in range(len(batch)) if next(owned)] for batch in self.batches]
        self.momenta = [
            torch.zeros(len(own), *batch[0].shape, device=batch[0].device)
            for own, batch in zip(self.own, self.batches, strict=True)
        ]

    @torch.no_grad()
    def step(self, lr: float, meanwhile: Callable[[], object] = lambda: None) -> None:
        """One step; `meanwhile` is done while the updates travel between the processes."""
        c = self.config
        warm = min(1.0, self.step_count / c.momentum_steps) if c.momentum_steps else 1.0
        momentum = (1 - warm) * c.momentum_start + warm * c.momentum
        updates: list[Tensor] = []
        for batch, own, momenta_MRC in zip(self.batches, self.own, self.momenta, strict=True):
            if not own:
                continue
            grads_MRC = torch.stack([g for i in own if (g := batch[i].grad) is not None])
            momenta_MRC.mul_(momentum).add_(grads_MRC)
            nesterov_MRC = grads_MRC.add_(momenta_MRC, alpha=momentum)
            updates += orthogonalise(nesterov_MRC, c.newton_schulz_steps)
        finish = self.shares.exchange(updates, update_dtype(self.momenta[0].device))
        meanwhile()
        if c.weight_decay:
            _foreach_mul_(self.matrices, 1 - lr * c.weight_decay)
        todo = iter(finish())
        for batch in self.batches:
            rows, columns = batch[0].shape
            # In float32, as a mixed sum would be one kernel for every matrix.
            updates_MRC = torch.stack([next(todo) for _ in batch]).float()
            scale = -lr * math.sqrt(max(1.0, rows / columns))
            _foreach_add_(batch, updates_MRC.unbind(), alpha=scale)
        self.step_count += 1

    def reset(self) -> None:
        self.step_count = 0
        for momenta_MRC in self.momenta:
            momenta_MRC.zero_()

    def all_momenta(self) -> list[Tensor]:
        """The momenta of all matrices, float32 [M, R, C] for each shape; every process calls it."""
        own = [momentum_RC for momenta_MRC in self.momenta for momentum_RC in momenta_MRC]
        momenta = iter(self.shares.exchange(own, torch.float32)())
        return [torch.stack([next(momenta) for _ in batch]) for batch in self.batches]

    @torch.no_grad()
    def load_momenta(self, momenta: Sequence[Tensor]) -> None:
        """The inverse of `all_momenta`; each process takes its own."""
        for own, mine_MRC, momenta_MRC in zip(self.own, self.momenta, momenta, strict=True):
            mine_MRC.copy_(momenta_MRC[own])


class Optimiser:
    """Muon and Adam over the groups that the model declares for its parameters.

    `step(factor)` multiplies every group's learning rate by the schedule's factor. Parameters of
    the group `frozen` are never changed.

    All processes of `world` call `step` and `state`, with the same gradients. Muon's matrices are
    shared out among them; Adam, whose parameters are few, does the same in each.
    """

    def __init__(self, model: HybridLM, config: OptimConfig, world: World = ALONE) -> None:
        groups = partition(model)
        for parameter in groups["frozen"].values():
            parameter.requires_grad_(False)
        self.muon = Muon(groups["matrix"], config, world)
        rates = {
            "embedding": config.embedding_lr,
            "head": config.head_lr,
            "vector": config.vector_lr,
            "dynamics": config.dynamics_lr,
        }
        self.matrix_lr = config.matrix_lr
        self.adam = torch.optim.Adam(
            [
                {"params": list(groups[name].values()), "lr": lr, "base_lr": lr}
                for name, lr in rates.items()
                if groups[name]
            ],
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self.adam_names = [name for group in rates for name in groups[group]]
        self._parameters = [p for group in groups.values() for p in group.values()]

    def step(self, factor: float) -> None:
        for group in self.adam.param_groups:
            group["lr"] = factor * group["base_lr"]
        self.muon.step(factor * self.matrix_lr, meanwhile=self.adam.step)
        for parameter in self._parameters:
            parameter.grad = None

    def reset(self) -> None:
        """Forgets everything but the learning rates: the state before the first step."""
        self.adam.state.clear()
        self.muon.reset()

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimiser's state, by a name that no number of processes changes."""
        tensors = {f"muon.{i}": m for i, m in enumerate(self.muon.all_momenta())}
        tensors["muon.step"] = torch.tensor(self.muon.step_count)
        for name, parameter in zip(self.adam_names, self._adam_parameters(), strict=True):
            for key, value in self.adam.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; a missing tensor is a KeyError."""
        self.muon.load_momenta([tensors[f"muon.{i}"] for i in range(len(self.muon.batches))])
        self.muon.step_count = int(tensors["muon.step"])
        for name, parameter in zip(self.adam_names, self._adam_parameters(), strict=True):
            self.adam.state[parameter] = {
                key: tensors[f"adam.{key}.{name}"].to(parameter.device, copy=True)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }

    def _adam_parameters(self) -> list[Tensor]:
        return [p for group in self.adam.param_groups for p in group["params"]]


def partition(model: HybridLM) -> dict[str, dict[str, Tensor]]:
    """The model's parameters by group and name: each in exactly one, or a ValueError.

    One without elements is frozen whatever its group: a model of one block has no skips, so
    their weights get no gradient, and Adam would have no state for them.
    """
    declared = model.parameter_groups()
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in GROUPS}
    for name, parameter in model.named_parameters():
        group = declared[name]
        if group not in groups:
            raise ValueError(
                f"parameter {name} is in group {group!r}; known are {', '.join(GROUPS)}"
            )
        if group == "matrix" and parameter.ndim != 2:
            raise ValueError(
                f"parameter {name} is in group 'matrix' but has shape {parameter.shape}"
            )
        groups[group if parameter.numel() else "frozen"][name] = parameter
    return groups
