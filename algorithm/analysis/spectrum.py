"""Singular values and vectors of weight matrices, what they sum up to, and how they moved since an earlier measurement."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, nan

import numpy as np
import torch
from torch import Tensor

from algorithm.errors import AnalysisError


@dataclass(frozen=True)
class Spectrum:
    """One matrix. values: all min(rows, columns) singular values, descending, float64.

    first, last: the followed indices, from the largest value down and from the smallest up. u (rows, F), v (columns, F):
    their left and right vectors in the order first, last (F together), where they were asked for. floor: what the
    arithmetic cannot tell from 0, max(shape) * eps * sigma_max; vectors of such values are arbitrary.
    """

    name: str
    shape: tuple[int, int]
    values: np.ndarray
    first: tuple[int, ...]
    last: tuple[int, ...]
    floor: float
    u: np.ndarray | None = None
    v: np.ndarray | None = None

    @property
    def sigma_max(self) -> float:
        return float(self.values[0])

    @property
    def rank(self) -> int:
        """Values above the floor."""
        return int((self.values > self.floor).sum())

    @property
    def frobenius(self) -> float:
        return float(np.sqrt(np.square(self.values).sum()))

    @property
    def stable_rank(self) -> float:
        """|W|_F^2 / sigma_max^2 (Rudelson & Vershynin 2007), 0 of a zero matrix."""
        return float(np.square(self.values / self.sigma_max).sum()) if self.sigma_max else 0.0

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of p_i = sigma_i / sum sigma (Roy & Vetterli 2007, definition 2), 0 of a zero matrix."""
        p = self.values[self.values > 0] / max(float(self.values.sum()), np.finfo(np.float64).tiny)
        return exp(-float((p * np.log(p)).sum())) if len(p) else 0.0

    @property
    def condition(self) -> float:
        """sigma_max / sigma_min; infinite where the smallest is not above the floor."""
        return self.sigma_max / float(self.values[-1]) if self.values[-1] > self.floor else inf

    def summary(self) -> dict[str, float]:
        return {"sigma_max": self.sigma_max, "frobenius": self.frobenius, "stable_rank": self.stable_rank,
                "effective_rank": self.effective_rank, "rank": self.rank, "condition": self.condition}


def followed(count: int, topk: int | None, interval: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(first, last): 0, interval, 2 interval ... and count-1, count-1-interval ..., topk of each, fewer where the values
    end. topk None: all from the first on, none from the last."""
    if interval < 1 or (topk is not None and topk < 1):
        raise AnalysisError(f"topk={topk} and interval={interval} must be at least 1")
    if topk is None:
        return tuple(range(0, count, interval)), ()
    steps = range(0, count, interval)[:topk]
    return tuple(steps), tuple(count - 1 - i for i in steps)


def measure(name: str, matrix: Tensor, topk: int | None = None, interval: int = 1, vectors: bool = False,
            dtype: torch.dtype = torch.float32, on_cpu: bool = False) -> Spectrum:
    """The spectrum of a matrix (rows, columns), on its device unless on_cpu, computed in `dtype`.

    MPS has no float64, so there float64 is on the CPU. Raises AnalysisError where the matrix is not finite.
    """
    to_cpu = on_cpu or (matrix.device.type == "mps" and dtype is torch.float64)
    work = matrix.detach().to(device="cpu" if to_cpu else matrix.device).to(dtype)
    if not bool(torch.isfinite(work).all()):
        raise AnalysisError(f"{name} holds values that are not finite: it has no singular values")
    first, last = followed(min(matrix.shape), topk, interval)
    u = v = None
    try:
        if vectors:
            left, sigma, right = torch.linalg.svd(work, full_matrices=False)
            u, v = left[:, [*first, *last]].cpu().numpy(), right[[*first, *last]].T.contiguous().cpu().numpy()
        else:
            sigma = torch.linalg.svdvals(work)
    except torch.linalg.LinAlgError as error:
        raise AnalysisError(f"the singular values of {name} did not converge ({str(error).splitlines()[0]}): take dtype "
                            "float64, or the CPU") from None
    values = sigma.double().cpu().numpy()
    floor = max(matrix.shape) * torch.finfo(dtype).eps * float(values[0])
    return Spectrum(name, (int(matrix.shape[0]), int(matrix.shape[1])), values, first, last, floor, u, v)


@dataclass(frozen=True)
class Change:
    """Since an earlier measurement. delta_sv_rel: |s - s'|_2 / |s'|_2, NaN where s' is all zeros.

    cos_u, cos_v (F,): |u_i . u_i'| and |v_i . v_i'| of the followed vectors, NaN where a value is, now or then, not above
    its floor.
    """

    delta_sv_rel: float
    cos_u: np.ndarray
    cos_v: np.ndarray


def change(now: Spectrum, before: Spectrum) -> Change:
    """How a matrix moved between two measurements of the same followed indices. Raises AnalysisError."""
    if (now.name, now.shape, now.first, now.last) != (before.name, before.shape, before.first, before.last):
        raise AnalysisError(f"{now.name} {now.shape} cannot be compared with {before.name} {before.shape}: expected the "
                            "same matrix, topk and interval in both measurements")
    if now.u is None or now.v is None or before.u is None or before.v is None:
        raise AnalysisError(f"{now.name} was measured without vectors: measure with vectors=True to compare them")
    size = before.frobenius
    delta = float(np.linalg.norm(now.values - before.values)) / size if size else nan
    index = [*now.first, *now.last]
    told = (now.values[index] > now.floor) & (before.values[index] > before.floor)
    cosines = [np.where(told, np.minimum(np.abs((a.astype(np.float64) * b).sum(axis=0)), 1.0), nan)
               for a, b in ((now.u, before.u), (now.v, before.v))]
    return Change(delta, cosines[0], cosines[1])


def metrics(now: Spectrum, before: Spectrum | None = None) -> dict[str, float]:
    """What a monitor logs of a matrix: sigma_max, sv1.. and sv_last1.. of the followed values; with an earlier measurement
    delta_sv_rel, cos_u1.., cos_u_last1.. (v alike), and cos_{u,v}_{max,mean} over all of them. What is not defined is
    left out."""
    labels = [*(str(i + 1) for i in range(len(now.first))), *(f"_last{i + 1}" for i in range(len(now.last)))]
    index = [*now.first, *now.last]
    out = {"sigma_max": now.sigma_max} | {f"sv{n}": float(now.values[i]) for n, i in zip(labels, index, strict=True)}
    if before is None:
        return out
    moved = change(now, before)
    if moved.delta_sv_rel == moved.delta_sv_rel:
        out["delta_sv_rel"] = moved.delta_sv_rel
    for side, cosines in (("u", moved.cos_u), ("v", moved.cos_v)):
        told = [(n, float(c)) for n, c in zip(labels, cosines, strict=True) if c == c]
        out |= {f"cos_{side}{n}": c for n, c in told}
        if told:
            out[f"cos_{side}_max"] = max(c for _, c in told)
            out[f"cos_{side}_mean"] = sum(c for _, c in told) / len(told)
    return out
