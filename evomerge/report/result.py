"""The result of a search, as its run directory tells it: numbers, the merged model, and what becomes of them.

In: a run directory, and the candidate that was searched, if it is still there. Out: a `Result`, which shows itself,
draws its page, puts the winner into the live model, and saves it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.common.directories import TemporaryDirectory
from evomerge.common.errors import ConfigError
from evomerge.common.forms import checked
from evomerge.common.progress import Silent
from evomerge.common.shown import Shown
from evomerge.inspection.candidate import Candidate
from evomerge.inspection.family import Family
from evomerge.models.buffers import BASE
from evomerge.problem import Problem
from evomerge.recipes.buffers import put_statistics, statistics_of
from evomerge.recipes.coefficients import Coefficients
from evomerge.recipes.model import write_model
from evomerge.recipes.modules import write_module
from evomerge.recipes.origins import find_origins
from evomerge.recipes.recipe import Recipe
from evomerge.report.page import write_report
from evomerge.runs.beside import Beside, read_worth
from evomerge.runs.build import build_problem
from evomerge.runs.directory import open_run
from evomerge.runs.given import Given
from evomerge.runs.points import find_point_recipe, open_problem
from evomerge.runs.table import gain_of, tables_of
from evomerge.selection.summary import Summary
from evomerge.task_vectors.stores import AUTO
from evomerge.trials import Trial


class Result:
    """A search that was run, as its run directory tells it.

    Args:
        run: the run directory.
        candidate: whose live model the winner is put into; made of the run's sources when left out.
        kept: the run directory, where it is a temporary one.
        given: what the search had in memory.

    Attributes:
        path: the run directory; a temporary one where the search was given none.
    """

    def __init__(
        self,
        run: str | Path,
        candidate: Candidate | None = None,
        kept: TemporaryDirectory | None = None,
        given: Given | None = None,
    ) -> None:
        self.path, self._kept, self._given = Path(run), kept, given
        self._run = open_run(self.path)
        if candidate is not None:
            self.candidate = candidate

    @cached_property
    def candidate(self) -> Candidate:
        """The live model with the space of the search."""
        settings, places = self._run.settings, find_origins(self.recipe, self.path, None, {})
        base = places.pop("")
        model, space = settings["model"], settings["space"]
        family = Family(
            base,
            places,
            auto_class=self.recipe.auto_class,
            compute=model.get("compute"),
            vocabulary=self.recipe.vocabulary,
            allow_missing=model.get("allow_missing") or (),
            store=model.get("store", AUTO),
            buffers=model.get("buffers", BASE),
            cache=model["cache"],
        )
        found = {"": family.opened.base, **family.opened.experts}
        for name, source in {"": self.recipe.base, **self.recipe.experts}.items():
            if found[name].sha256 != source.sha256:
                raise ConfigError(
                    f"{found[name].path} changed since it was searched: its weights are not those of the recipe "
                    f"{self.path / 'recipe.yaml'}. Put back what was there."
                )
        more = {name: space.get(name) for name in ("sharing", "frozen", "tied", "bounds", "only", "sum")}
        return Candidate(family, space["granularity"], settings["method"], transform=settings["transform"], **more)

    @cached_property
    def problem(self) -> Problem:
        """What was searched, built again of its sources where they are not in memory."""
        if self._given is None:
            return open_problem(self._run, Silent())
        return build_problem(self._run.settings, Silent(), self._given.fitness, self._given)

    @property
    def summary(self) -> Summary:
        """Scores with standard errors: of `base`, `experts`, `best_constant` and `winner`; and the paired `gain`.

        Raises:
            ConfigError: the search has not ended.
        """
        if self._run.summary is None:
            raise ConfigError(f"The search of {self.path} has not ended: run it again to go on with it.")
        return self._run.summary

    @property
    def recipe(self) -> Recipe:
        """The winner: everything needed to build it again."""
        if self._run.recipe is None:
            raise ConfigError(f"The search of {self.path} has not ended: run it again to go on with it.")
        return self._run.recipe

    @checked(number="a whole number, such as 3")
    def point(self, number: int) -> Recipe:
        """Return a point of the front of a search with several values, as `summary.front.points` counts them from 1.

        Raises:
            ConfigError: there is no such point, or the search has one value.
        """
        return find_point_recipe(self._run, str(number), lambda: self.problem)

    @property
    def trials(self) -> list[Trial]:
        """All scored candidates, in order."""
        return list(self._run.trials())

    @property
    def coefficients(self) -> dict[str, Coefficients]:
        """The winner's coefficients by variable: `result.coefficients["weight"]["encoder.layer.0", "mood"]`."""
        return {name: Coefficients.of(name, rows) for name, rows in self.recipe.coefficients.items()}

    @property
    def beside(self) -> Beside | None:
        """The winner beside base, every expert and their ensemble, on the report items: `result.models` has the scores
        of each by task, `worth` what follows. None where it was not scored (`search(..., worth=True)`).

        Raises:
            LogError: the file is damaged.
        """
        return read_worth(self._run)

    @property
    def model(self) -> Any:
        """The live model, with the winner in it."""
        model = self.candidate.set(self.recipe)
        if "file" in self.recipe.buffers:  # taken anew at the end of the search, whoever has loaded it
            put_statistics(model, statistics_of(self.recipe, self.path))
        return model

    @checked(file="a file, or None")
    def report(self, file: str | Path | None = None) -> Path:
        """Draw the page of the run, and return where it is."""
        return write_report(self.path, None if file is None else Path(file))

    @checked(out="the directory to make", dtype="'bfloat16' or None", max_shard_size="'5GB' or None")
    def save(
        self, out: str | Path, *, dtype: str | None = None, max_shard_size: str | None = None, exact: bool = False
    ) -> Path:
        """Write the merged model as a directory that `from_pretrained` loads, with its recipe and card.

        Args:
            out: the directory to make.
            dtype: to cast to, such as bfloat16; None for that in which the model was scored.
            max_shard_size: such as 5GB; None for the files that the base has.
            exact: merge the experts as they are where the search packed task vectors (`Family(store=...)`).

        Raises:
            ConfigError: the directory holds something else; or models in memory are to be cast, or cut into files.
        """
        live = self.candidate.family.opened
        if live.in_memory:
            if dtype is not None or max_shard_size is not None or exact:
                raise ConfigError(
                    "dtype=, max_shard_size= and exact= are for models that came from directories: cast result.model, "
                    "and save it yourself."
                )
            model = self.model
            merged = live.live.as_written() if live.live.compute else model
            return write_module(merged, self.recipe, Path(out), live.live.processor)
        options: dict[str, Any] = {"dtype": dtype, "max_shard_size": max_shard_size, "exact": exact}
        return write_model(self.recipe, self.path, Path(out), **options, reporter=Silent())

    def to_mergekit(self) -> str:
        """Return the winner as mergekit's YAML.

        Raises:
            ConfigError: mergekit cannot express it.
        """
        file = self.path / "mergekit.yaml"
        if not file.is_file():
            raise ConfigError(
                f"mergekit cannot express this merge: `evomerge export {self.path} --as mergekit` says why, and "
                f"--materialise writes models that it can merge."
            )
        return file.read_text(encoding="utf-8")

    def shown(self) -> Shown:
        """Return the table of the report split, with the paired difference of the winner to the best constant, and what
        the winner is worth beside its parents, if that was scored.
        """
        table, *apart = tables_of(self.summary, self.beside)
        lines = [str(each) for each in apart]
        return replace(table, notes=[*table.notes, gain_of(self.summary), *lines, *self.summary.doubts])

    def __repr__(self) -> str:
        return str(self.shown())

    def _repr_html_(self) -> str:
        return self.shown().html()
