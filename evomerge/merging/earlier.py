"""What version 0.2 could merge and this one cannot: `dare_ties`, whose random masks came from another generator.

In: a run or a recipe of 0.2. Out: a refusal that says which version builds these masks.
"""

from __future__ import annotations

from evomerge.common.errors import ConfigError
from evomerge.merging.methods import DENSITY, WEIGHT

REFUSAL = (
    "Up to version 0.2, the random masks of dare_ties came from another generator, so this version would merge other "
    "models than were scored. Merge, evaluate or go on with that version (pip install 'evomerge<0.3'), or search again "
    "with this one, in another run directory. `evomerge report` shows the run here as well."
)


class EarlierDareTies:
    """The `dare_ties` of a run of 0.2: a name for its settings, of which nothing is made.

    Raises:
        ConfigError: always.
    """

    name = "dare_ties"
    title = "DARE with the election of TIES, as version 0.2 drew its masks"
    paper = "Yu et al. 2024, arXiv 2311.03099"
    mergekit: str | None = None
    variables = (WEIGHT, DENSITY)
    elementwise = True
    linear = False

    def __init__(self, seed: int = 0, normalize: bool = False) -> None:
        raise ConfigError(REFUSAL)
