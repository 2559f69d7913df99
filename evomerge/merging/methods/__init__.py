"""The methods, a file a family, one class each: a form, and how coefficients become its numbers.

Elections and masks are made anew for each candidate (`coupling: per_candidate` of mergekit), with density as a second
variable that is searched like the weight.

    linear.py   linear: Σ_k λ_k τ_k, task arithmetic (Ilharco et al. 2023); of transformed task vectors too
    trimmed.py  ties, breadcrumbs: what is kept is chosen by magnitude
    drawn.py    dare, dare_ties, della: what is kept is drawn
    average.py  average: Σ_k w_k θ_k / Σ_k w_k, of the models themselves (Wortsman et al. 2022)
    circles.py  slerp, nuslerp: along the great circle between two models
    spheres.py  karcher, multislerp: the average of any number of models on a sphere
"""

from evomerge.merging.methods.average import Average
from evomerge.merging.methods.circles import NuSlerp, Slerp
from evomerge.merging.methods.common import DENSITY, WEIGHT
from evomerge.merging.methods.drawn import Dare, DareTies, Della
from evomerge.merging.methods.linear import Linear
from evomerge.merging.methods.spheres import Karcher, MultiSlerp
from evomerge.merging.methods.trimmed import Breadcrumbs, Ties

METHODS = (Linear, Ties, Dare, DareTies, Della, Breadcrumbs, Slerp, NuSlerp, Karcher, MultiSlerp, Average)
"""All of them, as recipes and lists name them."""

__all__ = [
    "DENSITY",
    "METHODS",
    "WEIGHT",
    "Average",
    "Breadcrumbs",
    "Dare",
    "DareTies",
    "Della",
    "Karcher",
    "Linear",
    "MultiSlerp",
    "NuSlerp",
    "Slerp",
    "Ties",
]
