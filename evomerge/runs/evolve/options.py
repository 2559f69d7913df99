"""The options of the command mergekit-evolve, and what they are for a search here.

In: options by name, as the command line has them. Out: numbers and paths; and of those that mean nothing here, why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import yaml

from evomerge.common.errors import ConfigError

RESIDENT = "one model stays in memory, and every candidate is built in it"
OPTIONS: dict[str, str] = {
    "max_fevals": "budget",
    "sigma0": "searcher.sigma",
    "force_population_size": "searcher.popsize",
    "random_seed": "seed",
    "timeout": "budget_hours",
    "batch_size": "fitness.batch_size",
    "task_search_path": "tasks are looked for there",
    "storage_path": "the run directory holds the log and the recipe; hydra.run.dir=DIR names it",
    "strategy": RESIDENT,
    "in_memory": RESIDENT,
    "num_gpus": "evaluator=processes scores on all GPUs; evaluator.gpus is how many each worker has",
    "vllm": "the live model is scored; vLLM would have to load every candidate",
    "merge_cuda": "candidates are built where the model is: model.device",
    "reshard": "files are read as they are",
    "wandb": "the log and the page of the run show the course; nothing is sent anywhere",
    "wandb_project": "the log and the page of the run show the course",
    "wandb_entity": "the log and the page of the run show the course",
    "load_in_8bit": "candidates are scored in the dtype of the base; model.store=int8 keeps task vectors in 8 bits",
    "load_in_4bit": "candidates are scored in the dtype of the base; model.store=int4 keeps task vectors in 4 bits",
    "save_final_model": "`evomerge merge` writes the winner as a model",
    "trust_remote_code": "no code of a model is run",
    "allow_crimes": "models are of one architecture",
    "i_understand_the_depths_of_the_evils_i_am_unleashing": "fitness.public_test=true allows published test splits",
}
"""Options of mergekit-evolve 0.1.5, and what becomes of each."""
SWITCHES = (
    *("in_memory", "vllm", "merge_cuda", "reshard", "wandb", "load_in_8bit", "load_in_4bit", "save_final_model"),
    *("trust_remote_code", "allow_crimes", "i_understand_the_depths_of_the_evils_i_am_unleashing"),
)
"""Those without a value; `--no-` before the name turns one off."""


@dataclass(frozen=True)
class Options:
    """Options that were given.

    Attributes:
        given: by name, with underscores.
    """

    given: Mapping[str, str] = field(default_factory=dict)

    @overload
    def number(self, name: str) -> float | None: ...
    @overload
    def number(self, name: str, default: float) -> float: ...
    def number(self, name: str, default: float | None = None) -> float | None:
        """Return the number of an option.

        Raises:
            ConfigError: it is none.
        """
        if name not in self.given:
            return default
        try:
            return float(self.given[name])
        except ValueError:
            raise ConfigError(f"--{name.replace('_', '-')} {self.given[name]} is no number.") from None

    @property
    def search_path(self) -> Path | None:
        """The directory in which tasks are looked for."""
        path = self.given.get("task_search_path")
        return Path(path) if path else None

    def find_task(self, name: str) -> Path | None:
        """Return the YAML of a task below that directory, by the name that it gives itself; None if there is none."""
        for file in sorted(self.search_path.rglob("*.yaml")) if self.search_path else ():
            try:
                found = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeDecodeError):
                continue  # lm-eval has tags of its own, such as !function: by the name it finds these itself
            if isinstance(found, dict) and found.get("task") == name:
                return file
        return None
