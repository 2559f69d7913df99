"""What a method is: how one candidate is built from its coefficients, span by span.

A method names the variables that each (group, row) has, as data on its class, and says how spans are merged in one of
two ways. Ours, which take each element by itself, are `Formed`: a form that the kernels know, and the numbers of a
candidate. Any other class is a `SpanMethod`, with a `merge` of its own in torch. What is done to the task vectors once,
before the search, is a transform (`transforms/`), of which a method sees nothing but the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.common.names import listed
from evomerge.merging.kernels.form import Form, Numbers
from evomerge.merging.sites import Together
from evomerge.space.variable import Variable
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.spans import Span


@runtime_checkable
class Method(Protocol):
    """How candidates are built; see the module's docstring.

    Attributes:
        name: what recipes call it.
        title: what it does, in a few words, for a model's card.
        paper: where it was published, as one cites it.
        mergekit: what mergekit calls it; None where it has nothing of the kind.
        variables: which coefficients each (group, row) has.
        elementwise: whether it takes each element by itself, so that a span may be merged in chunks.
        linear: whether the merged span is linear in the weights, so that it has a gradient. Then it is elementwise.
    """

    name: str
    title: str
    paper: str
    mergekit: str | None
    variables: tuple[Variable, ...]
    elementwise: bool
    linear: bool


@runtime_checkable
class SpanMethod(Method, Protocol):
    """A method with a merge of its own."""

    def prepare(self, row: str, span: Span, delta: Delta) -> Any:
        """Return what `merge` needs of a delta: the delta itself, and what can be computed once for all candidates. An
        elementwise method returns the delta.
        """
        ...

    def merge(self, base: Tensor, prepared: Sequence[Any], coefficients: Mapping[str, np.ndarray], out: Tensor) -> None:
        """Write the merged span into `out`, float32 (n,).

        Args:
            base: θ₀ of the span, float32 (n,).
            prepared: what `prepare` returned, for each row whose delta is not zero here.
            coefficients: {variable: (number of those rows,)}.
            out: where to write.
        """
        ...


class Formed(ABC):
    """A method that kernels know: a form, and the numbers of each candidate; a `Method`.

    Attributes:
        form: how spans are merged.
        takes: the number of rows that it merges; None for any.
        whole: whether what it does to a site depends on the other sites of its group.
        separable: whether rows can be changed one by one before they meet in a sum, with an election and a divisor
            where there is one.
    """

    name: str
    title: str
    paper: str
    mergekit: str | None = None
    variables: tuple[Variable, ...]
    elementwise: bool = True
    linear: bool = False
    takes: int | None = None
    whole: bool = False
    separable: bool = True
    form: Form

    @property
    def counts_zero(self) -> bool:
        """Whether the weight of a row counts where its delta is zero: in a sum that is divided by all weights."""
        return self.form.divide and not self.form.elects

    def prepare(self, together: Together) -> Any:
        """Return what can be computed once for all candidates.

        Args:
            together: S sites of R rows each.
        """
        return None

    def ranks(self, prepared: Any) -> Sequence[Sequence[Tensor]]:
        """Return the ranks of the elements of each site and row, for a form that draws by them.

        Args:
            prepared: what `prepare` returned.
        """
        return ()

    @abstractmethod
    def numbers(self, together: Together, prepared: Any, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return the numbers of a candidate.

        Args:
            together: S sites of R rows each.
            prepared: what `prepare` returned.
            coefficients: {variable: float64 (G, K)}.
        """


def check_rows(method: Method | type[Method], rows: Sequence[str]) -> None:
    """Refuse another number of rows than a method takes.

    Args:
        method: the method.
        rows: their names.

    Raises:
        ConfigError: it merges fewer or more.
    """
    kind: type = method if isinstance(method, type) else type(method)
    takes = kind.takes if issubclass(kind, Formed) else None
    if takes in (None, len(rows)):
        return
    what = "the base and one expert" if takes == 1 else f"{takes} experts"
    raise ConfigError(
        f"The method {method.name} merges {what}, and there {'is' if len(rows) == 1 else 'are'} {len(rows)} "
        f"({listed(list(rows))}): name {takes} in model.experts, or choose a method that takes any number, such as "
        f"method=linear."
    )
