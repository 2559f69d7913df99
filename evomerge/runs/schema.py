"""The schema of the settings of a search: their names, types and defaults, against which Hydra holds what is given.

In: nothing. Out: dataclasses, one a group that has no classes of its own; what is `Any` is checked in `config.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from evomerge.common.limits import AUTO
from evomerge.fitness.objectives import KNEE
from evomerge.models.buffers import BASE
from evomerge.models.vocabulary import REFUSE
from evomerge.runs.roles import KEEP


@dataclass
class ModelConfig:
    """The sources: a suite, or a base and its experts."""

    name: str = MISSING
    suite: str | None = None
    builder: str | None = None  # a function that builds the suite where it is missing, with its module
    base: str | None = None  # a directory, or a name on the hub: owner/name, owner/name@revision
    experts: Any = None  # list of the same, or {name: the same}; with a suite: the names of those to take
    trajectory: Any = None  # checkpoints of one training run in place of experts: a pattern, or a list in their order
    vocabulary: str = REFUSE  # experts with another number of tokens: refuse, base, shared or union
    part: str | None = None  # the module of the base that experts of another architecture are
    dequantise: bool = False  # take quantised experts as the numbers that transformers makes of them
    template: str = BASE  # whose chat template, end token and generation config: base, or the name of an expert
    buffers: str = BASE  # floating buffers of a merge: base, average or recalibrate
    buffer_items: int = 256  # search items of which recalibrate takes them
    allow_missing: Any = None  # [name or pattern, ...] of tensors that experts may lack, and that may be left over
    trained_on: Any = None  # {expert: a .jsonl or .txt with its training texts, or a list of them}
    auto_class: str = "AutoModel"
    device: str = "auto"
    device_map: Any = None  # a model over several devices: auto, or {module: device}
    compute: str | None = AUTO  # the dtype to compute in; null: the checkpoint's
    place: str = AUTO  # where task vectors lie: device, host or disk
    store: str = AUTO  # how task vectors are kept
    cache: str = ".cache/evomerge"


@dataclass
class SpaceConfig:
    """Which coefficients exist."""

    granularity: str = MISSING
    n: int | None = None
    sharing: str = "separate"
    bounds: Any = None  # {variable: [low, high]}
    frozen: Any = None  # {name pattern: value}
    tied: Any = None  # [name pattern, {name pattern: factor}, ...]
    only: Any = None  # [name pattern, ...]
    sum: float | None = None  # of the weights of a group
    map: str | None = None  # tanh: weights between -1 and 1
    masks: Any = None  # [row pattern, ...] of the rows whose weights are searched as either on or off, too


@dataclass
class ObjectiveConfig:
    """How scores of tasks become one number, or several."""

    aggregate: str = "mean"  # or worst, chebyshev, pareto
    normalised: bool = False
    weights: Any = None  # {task: weight}
    forget: Any = None  # [task, ...] whose scores are to be low
    keep: float = KEEP  # of the base's score on the others, where something is to be forgotten
    values: Any = None  # {name: [task, ...] or settings}: several values, none of them added up
    constraints: Any = None  # {task, value or metric: ">= 0.98 * base"}
    sure: float | None = 0.0  # by how many standard errors constraints must hold on the select items
    choose: Any = KNEE  # how the winner of a front is chosen: or {at_least: {value: limit}, best: value}


@dataclass
class EvaluatorConfig:
    """What scores candidates."""

    kind: str = "serial"  # or processes, ray
    workers: Any = AUTO  # how many
    gpus: Any = AUTO  # of each worker
    threads: Any = AUTO  # of each worker; of this process where it scores by itself
    blocks: Any = AUTO  # into which the items of a candidate are cut
    address: str | None = None  # of a cluster of Ray's; null: one that is started here


@dataclass
class RacingConfig:
    """Whether candidates that fall behind their generation, or the best so far, are scored on all items."""

    alpha: float | None = None  # the share of the best that may be lost by mistake, such as 0.1; null: no race
    halving: bool = False  # true: by ranks alone, until those by which the searcher goes are left, or one of a batch
    looks: int = 3  # after how many parts of the items candidates may be dropped; fewer where items are few


@dataclass
class SearchConfig:
    """One search."""

    seed: int = 1
    budget: int = 200
    budget_items: int | None = None
    budget_hours: float | None = None  # of each call
    time_limit: Any = "auto"  # seconds, or null
    start: Any = "constants"
    baselines: Any = None  # [starts, ...] that are judged beside what is found
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Any = None
    transform: Any = None  # none, a name, or a list of names and {name: settings}
    space: SpaceConfig = field(default_factory=SpaceConfig)
    searcher: Any = None
    fitness: Any = None
    loss: Any = None
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    racing: RacingConfig = field(default_factory=RacingConfig)
    tracker: Any = None  # where a search is shown beside the terminal and the report
