"""Which coefficients are searched: groups x rows x variables in, a box of named coordinates out.

A point x, shape (dim,), is decoded into coefficients by one affine map per variable, A x + b with A of shape
(G * K, dim). Frozen entries have only zeros in A, tied entries share a column, with signs or factors if one wants,
rows that share their coefficient have one column per group, and `line` (LiNeS: lambda = alpha + beta * depth) has two
columns per row: all of them are the same code, and a gradient comes back through A transposed. Where weights have a
sum, or lie between -1 and 1, another map makes them of the amounts that this one gives (`maps.py`); masks say which of
them count (`masks.py`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from evomerge.common.errors import SpaceError
from evomerge.common.names import listed, unknown
from evomerge.space.affine import affine_basis, chosen, dead_entries
from evomerge.space.entries import Ties, free_entries, held_entries, left_out, tied_entries
from evomerge.space.groups import Group, make_groups
from evomerge.space.maps import Map, make_map, usual_bounds
from evomerge.space.masks import MASK, MASKED, always_on, switched, switched_back
from evomerge.space.variable import Variable, bounded, distinct, weight_of

SHARING = ("separate", "shared")
ROUNDING = 1e-9
"""How far beyond a bound a coefficient may lie and still be taken for the bound itself."""


@dataclass(frozen=True, eq=False)
class CoefficientSpace:
    """A box of named coordinates and the affine map from its points to coefficients; `make_space` builds it.

    G groups, K rows: the experts, or what a transform made of them. The coefficients of every variable have shape
    (G, K), in the order of `groups` and `rows`.

    Attributes:
        names: One per coordinate: `weight/encoder.layer.0/r8`; `weight/encoder.layer.0/*` where rows share it;
            `weight/shallow/r8` and `weight/deep/r8` for `line`; the pattern itself for entries that are tied by it.
        low: Lower bounds, float64 (dim,).
        high: Upper bounds, float64 (dim,).
        frozen: Entry name -> the value at which it is held; also those whose task vector is zero.
        matrices: Variable -> A, sparse (G * K, dim).
        offsets: Variable -> b, float64 (G * K,).
        scales: Variable -> what a coefficient is where all coordinates are 1, (G, K): 1 but for the factors of ties.
        onto: Makes weights of amounts; None where these are the weights.
    """

    groups: tuple[Group, ...]
    rows: tuple[str, ...]
    variables: tuple[Variable, ...]
    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    frozen: dict[str, float]
    matrices: dict[str, sparse.csr_array]
    offsets: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    onto: Map | None = None

    @property
    def dim(self) -> int:
        """Number of free coordinates."""
        return len(self.names)

    def decode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Coefficients of a point: x (dim,) -> {variable: float64 (G, K)}, in the bounds (to a rounding) if x is."""
        x = np.asarray(x, dtype=np.float64)
        if x.shape != (self.dim,):
            raise SpaceError(f"A point of this space has shape ({self.dim},), not {x.shape}.")
        found = {name: self._affine(name, x) for name in self.matrices}
        found["weight"] = self._mapped(found["weight"])
        if MASK in found:
            found["weight"] = switched(found["weight"], found.pop(MASK))
        return found

    def constant(self, weights: float | np.ndarray) -> dict[str, np.ndarray]:
        """Coefficients with the given weights, one or (K,), in all groups, and every other variable at its start."""
        return self.complete({"weight": np.broadcast_to(np.asarray(weights, dtype=np.float64), self._shape)})

    def flat(self, weight: float, rows: Collection[str] = ()) -> float | np.ndarray:
        """One weight for some rows and 0 for the others, (G, K); the weight itself where no rows are named."""
        if not rows:
            return weight
        return np.broadcast_to(np.where([row in rows for row in self.rows], weight, 0.0), self._shape)

    def ties(self, rows: Collection[str]) -> bool:
        """Whether a coordinate moves the weights of some rows together with those of others."""
        place = np.repeat([[row in rows for row in self.rows]], len(self.groups), axis=0).ravel()
        moved = abs(self.matrices["weight"])
        return bool(np.any((moved.T @ place > 0) & (moved.T @ ~place > 0)))

    def complete(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Coefficients of all variables, (G, K) each: the given ones, and the start of those that are left out.

        Raises:
            SpaceError: a variable that the space does not have, a wrong shape, or a value that is not finite.
        """
        return {name: each.copy() for name, each in self._checked({**self._starts(), **values}).items() if name != MASK}

    def _starts(self) -> dict[str, float]:
        return {variable.name: variable.start for variable in self.variables}

    def moves(self, variable: str) -> np.ndarray:
        """Boolean (G, K): which coefficients of a variable depend on the point at all."""
        moved = self._free(variable)
        return moved | self._free(MASK) if variable == "weight" and MASK in self.matrices else moved

    def pullback(self, gradients: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        """Gradient at x, (dim,), from those with respect to the coefficients there, {variable: (G, K)}."""
        found = {**self._checked(gradients)}
        amounts = self._affine("weight", x)
        if MASK in self.matrices:
            found["weight"], found[MASK] = switched_back(found["weight"], self._mapped(amounts), self._affine(MASK, x))
        if self.onto and "weight" in found:
            found["weight"] = self.onto.pulled_back(found["weight"], amounts, self._free("weight"))
        return sum((self.matrices[name].T @ each.ravel() for name, each in found.items()), np.zeros(self.dim))

    def start(self, values: Mapping[str, float | np.ndarray]) -> np.ndarray:
        """The point (dim,) whose coefficients are nearest to the given ones (least squares), all within the bounds.

        Args:
            values: Variable -> a constant, of the coordinates, or an array (G, K) of coefficients; a variable that is
                missing starts at its `start`.

        Raises:
            SpaceError: a variable that the space does not have, a wrong shape, a value that is not finite, or one
                outside the bounds, for a coefficient that the search can move.
        """
        self._refuse_outside(self._wanted(values))
        return self.nearest(values)

    def nearest(self, values: Mapping[str, float | np.ndarray]) -> np.ndarray:
        """As `start`, for values that may lie outside the bounds: then the nearest bound stands for them."""
        x = np.zeros(self.dim)
        wanted = self._wanted({**self._starts(), **values})
        for name, a in self.matrices.items():
            target = wanted[name].ravel() - self.offsets[name]
            columns = np.flatnonzero(np.bincount(a.indices, minlength=self.dim))
            if len(columns) == 0:
                continue
            low, high = self.low[columns], self.high[columns]
            if np.diff(a.indptr).max() <= 1:  # no row has two columns: each column has its own closed solution
                x[columns] = np.clip(
                    (a.T @ target)[columns] / (a.power(2).T @ np.ones(len(target)))[columns], low, high
                )
            else:
                from scipy import optimize  # takes longer to load than all else here, and only `line` needs it

                x[columns] = optimize.lsq_linear(a[:, columns].toarray(), target, (low, high), method="bvls").x
        return x

    def _affine(self, name: str, x: np.ndarray) -> np.ndarray:
        return (self.matrices[name] @ x + self.offsets[name]).reshape(self._shape)

    def _free(self, name: str) -> np.ndarray:
        return (np.diff(self.matrices[name].indptr) > 0).reshape(self._shape)

    def _mapped(self, amounts: np.ndarray) -> np.ndarray:
        return self.onto.weights(amounts, self._free("weight")) if self.onto else amounts

    @property
    def weight(self) -> Variable:
        """The variable that every method has, with its bounds."""
        return weight_of(self.variables)

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.groups), len(self.rows)

    def _wanted(self, values: Mapping[str, float | np.ndarray]) -> dict[str, np.ndarray]:
        """The same values as arrays (G, K), of amounts where there is a map; constants are of all coordinates."""
        constant = {name for name, value in values.items() if np.ndim(value) == 0}
        arrays = self._checked(values)
        if self.onto and "weight" in arrays:
            given, one = arrays["weight"], self.onto.constant(float(arrays["weight"][0, 0]), self.weight)
            amounts = self.onto.amounts(given, self._free("weight"), self.weight)
            arrays["weight"] = np.full(self._shape, one) if "weight" in constant else amounts
        return {name: array * self.scales[name] if name in constant else array for name, array in arrays.items()}

    def _refuse_outside(self, wanted: Mapping[str, np.ndarray]) -> None:
        """Refuse values, {variable: (G, K)}, that no point has: taken to the nearest bound, they would be others."""
        for variable in (variable for variable in self.variables if variable.name in wanted):
            scales, (low, high) = self.scales[variable.name], _box(variable, self.onto)
            values, ends = wanted[variable.name], np.stack([scales * low, scales * high])
            say = self.onto.said if self.onto and variable.name == "weight" else float
            outside = (values < ends.min(axis=0) - ROUNDING) | (values > ends.max(axis=0) + ROUNDING)
            outside &= self.moves(variable.name)
            if outside.any():
                g, k = (int(place[0]) for place in np.nonzero(outside))
                own = values[outside] / scales[outside]
                box = [say(min(low, own.min())), say(max(high, own.max()))]
                raise SpaceError(
                    f"The search would start at {say(values[g, k]):g} for {variable.name}/{self.groups[g].name}/"
                    f"{self.rows[k]}, which is outside of the bounds of {variable.name}, [{say(low):g}, "
                    f"{say(high):g}]. Write a start inside, or wider bounds: "
                    f"'space.bounds={{{variable.name}: [{box[0]!s}, {box[1]!s}]}}'."
                )

    def _checked(self, values: Mapping[str, float | np.ndarray]) -> dict[str, np.ndarray]:
        """The same values as finite float64 arrays of shape (G, K)."""
        arrays = {}
        for name, value in values.items():
            if name not in self.matrices:
                raise SpaceError(unknown("variable", name, self.matrices))
            array = np.asarray(value, dtype=np.float64)
            if array.shape not in ((), self._shape):
                raise SpaceError(f"{name} needs one number or an array of shape {self._shape}, not {array.shape}.")
            if not np.isfinite(array).all():
                raise SpaceError(f"{name} has values that are not finite.")
            arrays[name] = np.broadcast_to(array, self._shape)
        return arrays


def make_space(
    granularity: str,
    parameters: Mapping[str, tuple[int, ...]],
    rows: Sequence[str],
    variables: Sequence[Variable],
    zero: Collection[tuple[str, str]] = frozenset(),
    sharing: str = "separate",
    frozen: Mapping[str, float] | None = None,
    tied: Ties | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    only: Sequence[str] | None = None,
    total: float | None = None,
    onto: str | None = None,
    masked: Sequence[str] | None = None,
) -> CoefficientSpace:
    """Build the coefficient space of a search.

    Patterns (shell globs, or a name as it stands) are held against the coordinate names as they would be without any
    pattern: `variable/group/row`, `variable/group/*` if rows share, `variable/shallow/row` and
    `variable/deep/row` for `line`. What is frozen is not tied.

    For `line`, the coefficient of a block is (1 - d) * shallow + d * deep, with d from 0 (first block) to 1 (last) and
    0 outside the blocks: LiNeS' alpha is shallow, its alpha + beta is deep, and the box on both ends bounds every
    coefficient in between.

    Args:
        granularity: See `make_groups`.
        parameters: name -> shape, in the order of the live model.
        rows: Their names, K of them.
        variables: What the method has for each (group, row).
        zero: (row, parameter) pairs whose task vector is zero. A (group, row) that is zero everywhere is frozen:
            weight at 0, other variables at their start; with shared rows only if it is zero for all of them.
        sharing: `separate`, or `shared` for one coefficient for all rows of a group.
        frozen: pattern -> value at which its entries are held.
        tied: patterns, each of which makes one coordinate of its entries; or {pattern: factor}, one coordinate x of all
            of them, with factor * x for the entries of a pattern. It is named by its first pattern; bounds are of x.
            With {row: factor}, there is one in each group.
        bounds: variable -> (low, high), instead of the variable's own.
        only: patterns of the entries that are searched; others that are not frozen are held at their variable's start.
        total: what the weights of each group sum to. Coordinates, bounds and ties are of amounts then (`maps.py`),
            which may be frozen at 0 alone.
        onto: `tanh`, for weights between -1 and 1; None for any.
        masked: patterns of the rows whose weights have masks: further coordinates, `mask/group/row`.

    Raises:
        SpaceError: any of the above does not exist, contradicts another, or leaves nothing to search.
    """
    groups = make_groups(granularity, parameters)
    rows = distinct(rows, "row")
    variables = bounded(
        [*variables, *([MASKED] if masked else [])], {**usual_bounds(onto, variables), **(bounds or {})}
    )
    if sharing not in SHARING:
        raise SpaceError(unknown("sharing", sharing, SHARING))
    dead = dead_entries(groups, rows, zero, sharing)
    basis, coordinates = affine_basis(groups, rows, granularity == "line", sharing, dead)
    entries = {v.name: [f"{v.name}/{coordinate}" for coordinate in coordinates] for v in variables}
    held, merged = held_entries(entries, variables, frozen or {}), tied_entries(entries, variables, tied or ())
    beside = left_out(entries, variables, only) if only else {}
    held = {**beside, **always_on(entries.get(MASK, ()), masked or ()), **held}
    factors = {factor for entry, (_, factor) in merged.items() if entry.startswith("weight/")}
    made = make_map(total, onto, weight_of(variables), sharing, held, factors)
    free = free_entries(entries, np.isin(np.arange(len(coordinates)), basis.indices), held, merged)
    names = tuple(dict.fromkeys(name for name, _ in free.values()))
    pairs = np.argwhere(dead)
    low, high, known = np.empty(len(names)), np.empty(len(names)), dict(held)
    matrices, offsets, scales = {}, {}, {}
    for v in variables:
        choice, constant = chosen(entries[v.name], free, names, held)
        constant = made.held(constant) if made and v.name == "weight" else constant
        rest = 0.0 if v.name == "weight" else v.start
        matrices[v.name], offsets[v.name] = sparse.csr_array(basis @ choice), basis @ constant + rest * dead.ravel()
        found = basis @ np.array([free[entry][1] if entry in free else 1.0 for entry in entries[v.name]])
        scales[v.name] = np.where(np.abs(found - 1) < ROUNDING, 1.0, found).reshape(dead.shape)
        low[choice.indices], high[choice.indices] = _box(v, made)
        known |= {f"{v.name}/{groups[g].name}/{'*' if sharing == 'shared' else rows[k]}": rest for g, k in pairs}
    space = CoefficientSpace(
        groups, tuple(rows), tuple(variables), names, low, high, known, matrices, offsets, scales, made
    )
    if total is not None:
        _check_moves(space, total)
    return space


def _check_moves(space: CoefficientSpace, total: float) -> None:
    """Refuse a space whose points are all one model, since a sum leaves nothing to its only weight.

    Raises:
        SpaceError: they are: two that were drawn have the same coefficients.
    """
    one, other = (space.decode(x) for x in np.random.default_rng(0).uniform(space.low, space.high, (2, space.dim)))
    if all(np.allclose(one[name], other[name], rtol=0, atol=ROUNDING) for name in one):
        raise SpaceError(
            f"sum: the weights of each group sum to {total:g}, and in no group do two of them move on their own (rows: "
            f"{listed(space.rows)}), so all points are the same model: leave out space.sum, or search where there are "
            f"rows to choose from, such as those of transform=none."
        )


def _box(variable: Variable, onto: Map | None) -> tuple[float, float]:
    """The bounds of coordinates of a variable."""
    return onto.box(variable) if onto and variable.name == "weight" else (variable.low, variable.high)
