"""All transforms of all families, in one list: a new one is added here."""

from evomerge.transforms.averages import ModelStock
from evomerge.transforms.chance import Dare, Della
from evomerge.transforms.importance import Pcb, Widen
from evomerge.transforms.magnitude import Breadcrumbs, Trim
from evomerge.transforms.masks import Cabs, Consensus, Sce, Tall
from evomerge.transforms.optimised import Doge, OptMerge, Wudi
from evomerge.transforms.sequential import Opcm
from evomerge.transforms.signs import Elect, MagMax, Unified
from evomerge.transforms.spectral import Cart, IsoC, IsoCts, Ranks, Star, Truncate, TsvM
from evomerge.transforms.subspace import CoreSpace, Knots
from evomerge.transforms.ties import TrimElect

TRANSFORMS = (
    *(TrimElect, Trim, Elect, Breadcrumbs, Dare, Della, MagMax, Unified),
    *(Consensus, Tall, Cabs, Sce, Truncate, Star, TsvM, IsoC, IsoCts, Opcm, ModelStock),
    *(Wudi, OptMerge, Doge, Pcb, Widen, Knots, CoreSpace, Ranks, Cart),
)
"""All of them, as recipes and lists name them."""
