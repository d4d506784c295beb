"""The optimiser: Muon for the blocks' matrices, Adam for the rest, in explicit groups.

Muon (Jordan et al. 2024) replaces a matrix's momentum by its nearest semi-orthogonal matrix,
found by Newton-Schulz iteration. All matrices of one shape are orthogonalised in one batch.

Shapes: M matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from scangolf.config import OptimConfig
from scangolf.model import HybridLM

GROUPS = ("matrix", "embedding", "head", "vector", "dynamics", "frozen")

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that drives every singular value towards 1 (Jordan et al. 2024)."""


def orthogonalise(G_MRC: Tensor, steps: int) -> Tensor:
    """The semi-orthogonal matrix near each of a batch: singular values end within about 0.7-1.2.

    bf16 on a GPU, where it is fast and accurate enough; float32 elsewhere.
    """
    a, b, c = NEWTON_SCHULZ
    X = G_MRC.bfloat16() if G_MRC.is_cuda else G_MRC.float()
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT
    X = X / (torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X.mT if tall else X


class Muon:
    """Nesterov momentum, orthogonalised, scaled by sqrt(max(1, rows / columns))."""

    def __init__(self, parameters: Mapping[str, Tensor], config: OptimConfig) -> None:
        self.config = config
        self.step_count = 0
        by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters.values():
            by_shape[parameter.shape].append(parameter)
        self.batches = list(by_shape.values())
        self.momenta = [torch.zeros_like(torch.stack(batch)) for batch in self.batches]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        c = self.config
        warm = min(1.0, self.step_count / c.momentum_steps) if c.momentum_steps else 1.0
        momentum = (1 - warm) * c.momentum_start + warm * c.momentum
        for batch, momenta_MRC in zip(self.batches, self.momenta, strict=True):
            grads_MRC = torch.stack([p.grad for p in batch if p.grad is not None])
            momenta_MRC.mul_(momentum).add_(grads_MRC)
            nesterov_MRC = grads_MRC.add_(momenta_MRC, alpha=momentum)
            update_MRC = orthogonalise(nesterov_MRC, c.newton_schulz_steps).to(grads_MRC.dtype)
            scale = math.sqrt(max(1.0, momenta_MRC.shape[-2] / momenta_MRC.shape[-1]))
            for parameter, update_RC in zip(batch, update_MRC, strict=True):
                parameter.add_(update_RC, alpha=-lr * scale)
        self.step_count += 1

    def reset(self) -> None:
        self.step_count = 0
        for momenta_MRC in self.momenta:
            momenta_MRC.zero_()


class Optimiser:
    """Muon and Adam over the groups that the model declares for its parameters.

    `step(factor)` multiplies every group's learning rate by the schedule's factor. Parameters of
    the group `frozen` are never changed.
    """

    def __init__(self, model: HybridLM, config: OptimConfig) -> None:
        groups = partition(model)
        for parameter in groups["frozen"].values():
            parameter.requires_grad_(False)
        self.muon = Muon(groups["matrix"], config)
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
        self.adam.step()
        self.muon.step(factor * self.matrix_lr)
        for parameter in self._parameters:
            parameter.grad = None

    def reset(self) -> None:
        """Forgets everything but the learning rates: the state before the first step."""
        self.adam.state.clear()
        self.muon.reset()

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimiser's state, by a stable name."""
        tensors = {f"muon.{i}": m for i, m in enumerate(self.muon.momenta)}
        tensors["muon.step"] = torch.tensor(self.muon.step_count)
        for name, parameter in zip(self.adam_names, self._adam_parameters(), strict=True):
            for key, value in self.adam.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; a missing tensor is a KeyError."""
        for i, momenta in enumerate(self.muon.momenta):
            momenta.copy_(tensors[f"muon.{i}"])
        self.muon.step_count = int(tensors["muon.step"])
        for name, parameter in zip(self.adam_names, self._adam_parameters(), strict=True):
            self.adam.state[parameter] = {
                key: tensors[f"adam.{key}.{name}"].to(parameter.device, copy=True)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }

    def _adam_parameters(self) -> list[Tensor]:
        return [p for group in self.adam.param_groups for p in group["params"]]


def partition(model: HybridLM) -> dict[str, dict[str, Tensor]]:
    """The model's parameters by group and name: each in exactly one, or a ValueError."""
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
        groups[group][name] = parameter
    return groups
