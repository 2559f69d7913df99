"""Methods that average any number of models on a sphere, tensor by tensor, as mergekit 0.1.5 does.

A tensor is a length and a direction. Directions are averaged on the sphere, lengths in a straight line. The result is
a weighted sum of the models, with weights that follow from their inner products alone. These are found once, in
float64, and a candidate costs as much as a weighted sum. mergekit works on the elements, so the last bits differ.

karcher       the point of the sphere with the least sum of squared angles to the directions
multislerp    the average of the directions, brought back to the sphere
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from evomerge.common.errors import ConfigError, MergeError
from evomerge.merging.kernels.form import Form, Numbers
from evomerge.merging.method import Formed
from evomerge.merging.methods.circles import PIECE
from evomerge.merging.methods.common import SHARE, SLIGHT
from evomerge.merging.sites import Site, Together
from evomerge.task_vectors.spans import chunks

OPPOSITE = 1e-7
"""The sine below which two directions are taken for the same, or for opposite: neither pulls anywhere."""


class _Sphere(Formed):
    """Weighs models by what their inner products say. Abstract.

    Args:
        deltas: whether differences to the base are averaged, in place of the models.
    """

    variables = (SHARE,)
    separable = False

    def __init__(self, deltas: bool) -> None:
        self.deltas = deltas
        self.form = Form(join="sum" if deltas else "blend")

    @property
    def counts_zero(self) -> bool:
        """Shares are of the sum of all weights."""
        return True

    def prepare(self, together: Together) -> np.ndarray:
        """Return the inner products of the base and the R rows of each site, float64 (S, R + 1, R + 1)."""
        return np.stack([_products(site, self.deltas) for site in together.sites])

    def numbers(self, together: Together, prepared: np.ndarray, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return what rows and base are multiplied by; a row without a delta is the base.

        Raises:
            MergeError: the weights of a group sum to nothing, or the directions have no average.
        """
        groups, rows = together.places
        weights = coefficients["weight"][groups[:, 0]]
        total = weights.sum(axis=1, keepdims=True)
        if not (np.abs(total) > SLIGHT).all():
            raise MergeError(
                "The weights of a group sum to 0, and shares are of their sum: write bounds above 0 in space.bounds, "
                "or another weight."
            )
        held = np.zeros(weights.shape, dtype=np.int64)
        np.put_along_axis(held, rows, np.broadcast_to(np.arange(1, rows.shape[1] + 1), rows.shape), axis=1)
        products = prepared[np.arange(len(held))[:, None, None], held[:, :, None], held[:, None, :]]
        factors = self.factors(products, weights / total)
        weight = np.take_along_axis(factors, rows, axis=1).astype(np.float32)
        if self.deltas:
            return Numbers(weight)
        return Numbers(weight, base=np.where(held == 0, factors, 0).sum(axis=1).astype(np.float32))

    @abstractmethod
    def factors(self, products: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Return what each row is multiplied by, (S, K).

        Args:
            products: inner products of the rows, (S, K, K).
            shares: of the rows, which sum to 1, (S, K).
        """


class Karcher(_Sphere):
    """Average models on the sphere: the mean of Karcher (1977), by steps along geodesics.

    mergekit weighs all models alike, and so does its YAML; here the weights are searched.

    Args:
        steps: how many are taken at most.
        tolerance: the angle, or the length, below which something counts as nothing.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "karcher"
    title = "the Karcher mean of the models: averaged on a sphere, tensor by tensor"
    paper = "Karcher 1977, Riemannian center of mass and mollifier smoothing"
    mergekit: str | None = "karcher"

    def __init__(self, steps: int = 10, tolerance: float = 1e-5) -> None:
        super().__init__(deltas=False)
        if steps < 1 or not tolerance > 0:
            raise ConfigError(
                f"The method karcher has steps={steps} and tolerance={tolerance}: write a whole number from 1 on, and "
                f"a number above 0, such as 1e-5."
            )
        self.steps, self.tolerance = steps, tolerance

    def factors(self, products: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Return the factors of the mean; see the base class."""
        lengths = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
        there = lengths > self.tolerance
        units = np.divide(1, lengths, out=np.zeros_like(lengths), where=there)
        cosines = products * units[:, :, None] * units[:, None, :]
        weights = np.where(there, shares, 0)
        total = weights.sum(axis=1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
        size = _size(weights, cosines)
        first = np.eye(len(there[0]))[there.argmax(axis=1)]
        mean = np.where(size < self.tolerance, first, weights / np.where(size < self.tolerance, 1, size))
        going = np.ones((len(mean), 1), dtype=bool)
        for _ in range(self.steps):
            near = np.clip(np.einsum("skj,sj->sk", cosines, mean), -1, 1)
            angle, sine = np.arccos(near), np.sqrt(1 - near**2)
            still = (angle < self.tolerance) | (sine < OPPOSITE)
            pull = weights * np.where(still, 0, angle / np.where(still, 1, sine))
            tangent = pull - (pull * near).sum(axis=1, keepdims=True) * mean
            length = _size(tangent, cosines)
            going &= length >= self.tolerance
            if not going.any():
                break
            moved = np.cos(length) * mean + np.sin(length) / np.where(going, length, 1) * tangent
            mean = np.where(going, moved / np.where(going, _size(moved, cosines), 1), mean)
        return (shares * lengths).sum(axis=1, keepdims=True) * mean * units


class MultiSlerp(_Sphere):
    """Average directions and bring the average back to the sphere (Goddard et al. 2024, mergekit's `multislerp`).

    mergekit then takes a step in the tangent plane at that average, which is zero by its formula but for rounding.

    Args:
        deltas: average the differences to the base, in place of the models.
    """

    name = "multislerp"
    title = "multi-SLERP: directions averaged on a sphere, tensor by tensor"
    paper = "Goddard et al. 2024, arXiv 2403.13257"
    mergekit: str | None = "multislerp"

    def __init__(self, deltas: bool = True) -> None:
        super().__init__(deltas)

    def factors(self, products: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Return the factors of the average; see the base class.

        Raises:
            MergeError: directions of more than two models cancel; of two, their straight average is taken.
        """
        lengths = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
        summed = shares * np.divide(1, lengths + SLIGHT, out=np.zeros_like(lengths), where=lengths > 0)
        size, length = _size(summed, products), (shares * lengths).sum(axis=1, keepdims=True)
        cancelled = size < SLIGHT
        if (cancelled & (np.abs(length) > 0)).any() and shares.shape[1] > 2:
            raise MergeError(
                "The directions of a tensor cancel with these weights, so they have no average on the sphere: write "
                "other weights."
            )
        return np.where(cancelled, shares, summed * length / np.where(cancelled, 1, size))


def _size(x: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Return the lengths of the sums of rows with the factors x, (S, 1).

    Args:
        x: (S, K).
        products: inner products of the rows, (S, K, K).
    """
    return np.sqrt(np.maximum(np.einsum("sk,skj,sj->s", x, products, x), 0))[:, None]


def _products(site: Site, deltas: bool) -> np.ndarray:
    """Return the inner products of the base and the rows, float64 (R + 1, R + 1); of differences, the base is 0.

    Pieces are so small that torch adds up each in one thread: the number of threads changes nothing.
    """

    def pieces() -> Iterator[list[Tensor]]:
        for place in chunks(len(site), PIECE):
            base = site.base[place].float()
            rows = [delta[place].dense() if deltas else delta[place].added(base) for delta in site.deltas]
            yield [each.double() for each in (torch.zeros_like(base) if deltas else base, *rows)]

    size = len(site.deltas) + 1
    places = np.triu_indices(size)
    total = sum(
        (
            torch.stack([(models[one] * models[other]).sum() for one, other in zip(*places, strict=True)])
            for models in pieces()
        ),
        torch.zeros(len(places[0]), dtype=torch.float64, device=site.base.device),
    )
    found = np.zeros((size, size))
    found[places] = total.cpu().numpy()
    return found + np.triu(found, 1).T
