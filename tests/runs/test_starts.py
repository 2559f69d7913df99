"""`start=their.yml`: a search that begins with what a merge YAML of mergekit's says, or the reason why it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.progress import Silent
from evomerge.merging.methods import Linear, Ties
from evomerge.problem import Problem, Sources
from evomerge.recipes.handover import make_recipe
from evomerge.runs import build
from evomerge.runs.build import build_problem, find_baselines, find_start
from evomerge.runs.config import plain
from evomerge.runs.directory import open_run
from evomerge.runs.points import find_finalist, open_problem
from evomerge.runs.run import run_search
from evomerge.runs.starts import digests_of, numbers_only, open_start, read_start
from evomerge.runs.suite import Suite
from evomerge.space.coefficients import CoefficientSpace, make_space
from tests.kit.helpers import compose

SHAPES = {
    "model.embed_tokens.weight": (9, 4),
    **{f"model.layers.{i}.{part}.weight": (4, 4) for i in range(3) for part in ("self_attn.q_proj", "mlp.up_proj")},
    "model.norm.weight": (4,),
    "lm_head.weight": (9, 4),
}
LINEAR: dict[str, Any] = {"_target_": "evomerge.merging.methods.Linear"}
TIES: dict[str, Any] = {"_target_": "evomerge.merging.methods.Ties", "normalize": True, "elect": "sum"}
GRADIENT = """\
merge_method: task_arithmetic
base_model: base
models:
- {model: experts/red, parameters: {weight: [0.2, 0.5, 0.8]}}
- {model: experts/blue, parameters: {weight: 0.4}}
"""


def space_of(granularity: str = "layer", method: Any = Linear, **more: Any) -> CoefficientSpace:
    return make_space(granularity, SHAPES, ["red", "blue"], method.variables, **more)


def started(text: str, path: Path, space: CoefficientSpace, method: dict[str, Any] = LINEAR) -> dict[str, Any]:
    (path / "their.yml").write_text(text)
    found = read_start(open_start(str(path / "their.yml")), method, space, SHAPES)
    return space.decode(space.start(found))


def test_a_gradient_becomes_numbers_of_layers(tmp_path: Path) -> None:
    space = space_of()
    weight = started(GRADIENT, tmp_path, space)["weight"]
    names = [group.name for group in space.groups]
    assert dict(zip(names, weight[:, 0].round(9), strict=True)) == {
        **{"embeddings": 0.2, "model.layers.0": 0.2, "model.layers.1": 0.5, "model.layers.2": 0.8, "head": 0.2}
    }
    assert weight[:, 1] == pytest.approx([0.4] * 5)


def test_a_yaml_begins_no_search_on_top_of_a_transform(tmp_path: Path) -> None:
    (tmp_path / "their.yml").write_text(GRADIENT)
    with pytest.raises(ConfigError, match=r"the search changes them first \(trim \+ tsvm\).*write transform=none"):
        read_start(open_start(str(tmp_path / "their.yml")), LINEAR, space_of(), SHAPES, None, ["trim", "tsvm"])


def test_a_recipe_of_another_merge_gives_numbers_only(pico_suite: Suite, tmp_path: Path) -> None:
    def built(*given: str) -> Problem:
        return build_problem(plain(compose("model=pico", f"model.suite={pico_suite.path}", *given)), Silent())

    path = tmp_path / "recipe.yaml"
    usual = built("transform=ties")
    path.write_text(make_recipe(usual, usual.space.constant(0.7), {}, {}).to_yaml())
    assert numbers_only(open_start(str(path)), usual) == ""
    on_other_groups = built("transform=ties", "space=tensor")
    assert numbers_only(open_start(str(path)), on_other_groups) == ""
    note = numbers_only(open_start(str(path)), built())
    assert note.startswith(
        f"start={path} gives numbers only, since the transform (ties(density=0.2) there) of that rec"
    )
    note = numbers_only(open_start(str(path)), built("method=ties", "model.experts=[trees,animals]"))
    assert (
        "the method (linear there), transform (ties(density=0.2) there), experts of that recipe are not those" in note
    )
    reporter = Said()
    other = built()
    found = find_start({**plain(compose("model=pico")), "start": str(path)}, other, reporter)
    assert found is not None
    np.testing.assert_array_equal(found["weight"], other.space.constant(0.7)["weight"])
    assert any("numbers only" in line for line in reporter.lines)
    text = GRADIENT.replace("experts/red", "trees").replace("experts/blue", "metals")
    (tmp_path / "their.yml").write_text(text)
    with pytest.raises(ConfigError, match=r"the search changes them first \(tsvm\)"):
        find_start(
            {**plain(compose("model=pico")), "start": str(tmp_path / "their.yml")}, built("transform=tsvm"), reporter
        )


class Said(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_run_that_began_with_a_yaml_on_top_of_a_transform_goes_on(
    pico_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions took its numbers; such a run is complete, is exported, and goes on to the same log."""
    their = tmp_path / "their.yml"
    text = GRADIENT.replace("experts/red", "trees").replace("experts/blue", "metals")
    their.write_text(text.replace("[0.2, 0.5, 0.8]", "0.5"))
    few = [f"fitness.{name}=6" for name in ("items", "select_items", "report_items")]
    given = [*few, "space=model", "transform=trim", f"start={their}", f"model.cache={tmp_path / 'cache'}"]

    def config(budget: int) -> Any:
        return compose("model=pico", f"model.suite={pico_suite.path}", "model.device=cpu", *given, f"budget={budget}")

    with pytest.raises(ConfigError, match="the search changes them first"):
        run_search(config(7), tmp_path / "new", Silent())
    with monkeypatch.context() as earlier:
        earlier.setattr(build, "read_start", lambda *given: read_start(*given[:-1]))
        found = run_search(config(7), tmp_path / "old", Silent())
        run_search(config(14), tmp_path / "whole", Silent())
    assert run_search(config(7), tmp_path / "old", Reporter()) == found
    said = capsys.readouterr().err
    assert "This search is complete" in said
    assert "this run began with the numbers of" in said
    run = open_run(tmp_path / "old")
    assert find_finalist(run, open_problem(run, Silent()), "mean").x.shape == (3,)
    run_search(config(14), tmp_path / "old", Silent())
    logs = [(tmp_path / name / "trials.jsonl").read_bytes() for name in ("old", "whole")]
    assert logs[0] == logs[1]


def test_a_file_is_read_once(
    pico_suite: Suite, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "recipe.yaml", Path.read_text
    path.write_text(make_recipe(problem, problem.space.constant(0.7), {}, {}).to_yaml())
    times = list[Path]()

    def counted(self: Path, *given: Any, **more: Any) -> str:
        times.append(self)
        return read(self, *given, **more)

    monkeypatch.setattr(Path, "read_text", counted)
    own = plain(compose("model=pico", f"model.suite={pico_suite.path}"))
    for settings, find in (({"start": str(path)}, find_start), ({"baselines": [str(path)]}, find_baselines)):
        times.clear()
        assert find({**own, **settings}, problem, Silent())
        assert times.count(path) == 1


def test_what_is_no_text_or_no_recipe_is_refused_by_its_name(
    pico_suite: Suite, problem: Problem, tmp_path: Path
) -> None:
    weights, bad = pico_suite.base / "model.safetensors", tmp_path / "bad.yml"
    bad.write_text("hello: 1\n")
    for path, wrong in ((weights, "is no recipe and no merge YAML"), (bad, "recipe: Unknown key 'hello'")):
        settings = {**plain(compose("model=pico")), "start": str(path), "baselines": [str(path)]}
        for find in (find_start, find_baselines):
            with pytest.raises(ConfigError, match=rf"{path}.*{wrong}"):
                find(settings, problem, Silent())
    with pytest.raises(ConfigError, match=r"model\.safetensors is no recipe"):
        digests_of([str(weights)])


def test_settings_that_came_later_make_a_recipe_no_other_merge(pico_suite: Suite, tmp_path: Path) -> None:
    """Recipes of 0.2 have no `elect`, `over` and `scale`; experts alone are told apart in the plural."""
    ties = build_problem(plain(compose("model=pico", f"model.suite={pico_suite.path}", "method=ties")), Silent())
    recipe = make_recipe(ties, ties.space.constant(0.5), {}, {})
    path, earlier = tmp_path / "recipe.yaml", {"name": "ties", "normalize": recipe.method["normalize"]}
    assert earlier != recipe.method
    path.write_text(replace(recipe, method=earlier).to_yaml())
    assert numbers_only(open_start(str(path)), ties) == ""
    path.write_text(replace(recipe, method={**earlier, "elect": "count"}).to_yaml())
    assert "since the method (ties(" in numbers_only(open_start(str(path)), ties)
    trees = replace(recipe.experts["trees"], sha256="0" * 64)
    path.write_text(replace(recipe, experts={**recipe.experts, "trees": trees}).to_yaml())
    assert "since the experts of that recipe are not those of this search" in numbers_only(open_start(str(path)), ties)


def test_an_expert_that_the_yaml_has_not_starts_at_zero(tmp_path: Path) -> None:
    text = GRADIENT.replace("- {model: experts/blue, parameters: {weight: 0.4}}\n", "")
    assert started(text, tmp_path, space_of())["weight"][:, 1] == pytest.approx([0.0] * 5)


def test_densities_start_as_well(tmp_path: Path) -> None:
    text = GRADIENT.replace("task_arithmetic", "ties").replace("weight: 0.4", "weight: 0.4, density: 0.25")
    found = started(text, tmp_path, space_of(method=Ties()), TIES)
    assert found["density"] == pytest.approx(found["density"] * 0 + [1.0, 0.25])


def test_base_and_experts_of_the_yaml_are_those_of_the_search(tmp_path: Path) -> None:
    """A directory that is there counts as it is, and any other by what it is called, or was on the hub."""
    experts = {name: tmp_path / "m" / name for name in ("red", "blue")}
    space, sources = space_of(), Sources(tmp_path / "m" / "base", experts, {}, hub={"red": "me/tuned@c0ffee"})
    for name in ("m/base", "m/red", "m/blue", "other/base"):
        (tmp_path / name).mkdir(parents=True)

    def begun(text: str) -> Any:
        (tmp_path / "their.yml").write_text(text)
        return read_start(open_start(str(tmp_path / "their.yml")), LINEAR, space, SHAPES, sources)

    wanted = begun(GRADIENT)["weight"]
    for old, new in {
        "base_model: base": "base_model: m/base",
        "experts/blue": "m/blue",
        "experts/red": "me/tuned",
    }.items():
        assert np.array_equal(begun(GRADIENT.replace(old, new))["weight"], wanted)
    for other in ("other/base", "bert"):
        with pytest.raises(
            ConfigError, match=rf"line 2: its base_model is {other}, and the base of this search is .*/m"
        ):
            begun(GRADIENT.replace("base_model: base", f"base_model: {other}"))
    with pytest.raises(ConfigError, match=r"line 4: other/base is none of the experts of this search \(red, blue\)"):
        begun(GRADIENT.replace("experts/red", "other/base"))


@pytest.mark.parametrize(
    ("text", "space", "method", "message"),
    [
        (GRADIENT, {"granularity": "model"}, LINEAR, r"layers\.1\..* have different numbers there, .*space=tensor"),
        (GRADIENT, {"sharing": "shared"}, LINEAR, r"the nearest that the space has is 0\.6: leave out space\.sharing"),
        (GRADIENT, {"method": Ties()}, TIES, r"it merges by linear and the search by ties: write method=linear"),
        (
            GRADIENT.replace("task_arithmetic", "ties") + "parameters: {normalize: false}\n",
            {"method": Ties()},
            TIES,
            r"it has normalize false, and the search True: write method\.normalize=false",
        ),
        (GRADIENT.replace("/red", "/rot"), {}, LINEAR, r"line 4: experts/rot is none of the experts .*red, blue"),
        (GRADIENT.replace("0.8", "1.8"), {}, LINEAR, r"1\.8"),
    ],
)
def test_what_the_space_cannot_express_is_refused(
    text: str, space: dict[str, Any], method: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EvomergeError, match=message):
        started(text, tmp_path, space_of(**space), method)
