"""The Python API: families, candidates, searches and results, on models of torch alone and of transformers."""

from __future__ import annotations

import doctest
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, BertModel

import evomerge as em
from evomerge.common.progress import Silent
from evomerge.models.processing import digest_processor
from evomerge.runs.run import run_search
from tests.kit.helpers import compose
from tests.kit.models import BERT, pico
from tests.kit.tiny import Tiny
from tests.kit.vision import processor
from tests.processes import api_search
from tests.processes.api_search import Net, score, tuned
from tests.processes.waiting import exit_code, forked

ITEMS = em.items((str(i), i % 3) for i in range(90))


@pytest.fixture
def candidate() -> em.Candidate:
    net = Net()
    return em.Candidate(em.Family(net, red=tuned(net, 1), blue=tuned(net, 2)), space="layer")


def test_the_import_is_light():
    """Names come when they are used: no torch, no numpy, no Hydra before."""
    code = (
        "import sys, time; t = time.process_time(); import evomerge as em; dir(em); t = time.process_time() - t; "
        "assert t < 0.3, t; assert not {'torch', 'numpy', 'hydra', 'transformers'} & set(sys.modules); "
        "sys.modules['evomerge.api'] = api = type(sys)('evomerge.api'); api.search = print; "  # the real one is heavy
        "assert em.search is print; import evomerge.search.loop; assert em.search is print"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    assert all(hasattr(em, name) for name in em.__all__)
    assert em.search is import_module("evomerge.api").search is not import_module("evomerge.search")
    assert set(em.__all__) <= set(dir(em))
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = em.serach


@pytest.mark.parametrize(
    "module", ["evomerge.api", "evomerge.inspection.family", "evomerge.trials", "evomerge.recipes.coefficients"]
)
def test_examples_in_docstrings_run(module):
    assert doctest.testmod(import_module(module)).failed == 0


def test_fifteen_lines_from_family_to_merged_model(pico_suite, tmp_path):
    family = em.Family(pico_suite.base, pico_suite.experts)
    candidate = em.Candidate(family, space="layer")

    def score(model, tokenizer, items):
        found = {}
        for task, chosen in items.items():
            inputs = tokenizer([item.text for item in chosen], return_tensors="pt", padding=True)
            with torch.no_grad():
                found[task] = -model(**inputs).last_hidden_state.mean(1).norm(dim=1)
        return found

    tasks = {name: em.items(task.items) for name, task in pico_suite.tasks.items()}
    result = em.search(candidate, score, tasks, searcher=em.cmaes(sigma=0.2), budget=12, select_items=30)
    out = result.save(tmp_path / "merged")
    loaded = AutoModel.from_pretrained(out)
    ours = dict(result.model.named_parameters())
    assert all(torch.equal(ours[name], tensor) for name, tensor in loaded.named_parameters() if "pooler" not in name)
    assert "merge_method" in result.to_mergekit()
    assert result.report().is_file()


def test_a_search_from_python_is_that_of_the_command(pico_suite, tmp_path):
    """To the byte of the log, so one can go on with the other."""
    config = compose("model=pico", f"model.suite={pico_suite.path}", "budget=9", "fitness.items=24", "seed=3")
    config.model.cache, config.fitness.select_items, config.fitness.report_items = str(tmp_path), 30, 30
    run_search(config, tmp_path / "command", Silent())
    candidate = em.Candidate(em.Family(pico_suite.base, pico_suite.experts, cache=tmp_path), space="layer")
    tasks = {
        name: {"items": str(task.items), "head": str(task.head), "expert": name, "classes": list(task.classes)}
        for name, task in pico_suite.tasks.items()
    }
    more = {"budget": 9, "items": 24, "seed": 3, "select_items": 30, "report_items": 30}
    result = em.search(candidate, "classification", tasks, run=tmp_path / "python", **more)
    logs = [(tmp_path / name / "trials.jsonl").read_bytes() for name in ("command", "python")]
    assert logs[0] == logs[1]
    assert result.summary.report == em.load(tmp_path / "command").summary.report


def test_a_module_in_memory_is_searched_and_saved(candidate, tmp_path):
    with pytest.raises(em.EvomergeError, match=r"budget\.hours=0 is no time"):
        em.search(candidate, score, {"red": ITEMS}, hours=0)
    with pytest.raises(em.EvomergeError, match="tracker: Unknown choice 'wandbb': did you mean 'wandb'"):
        em.search(candidate, score, {"red": ITEMS}, tracker="wandbb")
    result = em.search(candidate, score, {"red": ITEMS}, budget=30, hours=1, run=tmp_path / "run")
    assert len(result.trials) == 30
    assert result.coefficients["weight"].groups == ("embeddings", "layers.0", "layers.1", "head")
    assert np.asarray(result.coefficients["weight"]).shape == (4, 2)
    assert result.coefficients["weight"]["head", "red"] == result.recipe.coefficients["weight"]["head"]["red"]
    assert float(score(result.model, ITEMS["report"]).mean()) == pytest.approx(result.summary.winner.mean)
    out = result.save(tmp_path / "merged")
    net = Net(5)
    net.load_state_dict(load_file(out / "model.safetensors"))
    assert torch.equal(score(net, ITEMS["report"]), score(result.model, ITEMS["report"]))
    assert "red" in repr(result)
    assert "<table>" in result._repr_html_()
    assert "<table>" in candidate.family._repr_html_()
    assert "<td>" in result.coefficients["weight"]._repr_html_()


def test_the_base_is_in_the_model_before_and_after(candidate):
    before = {name: tensor.clone() for name, tensor in candidate.model.state_dict().items()}
    em.search(candidate, score, {"task": ITEMS}, budget=8, searcher="random")
    assert all(torch.equal(tensor, before[name]) for name, tensor in candidate.model.state_dict().items())


def test_a_killed_search_goes_on_and_its_log_is_the_same(tmp_path):
    with forked(api_search.run_and_die, tmp_path / "killed", 14) as process:
        assert exit_code(process) == -signal.SIGKILL
    before = (tmp_path / "killed" / "trials.jsonl").read_bytes()
    results = [api_search.run(tmp_path / name) for name in ("killed", "whole")]
    logs = [(tmp_path / name / "trials.jsonl").read_bytes() for name in ("killed", "whole")]
    assert logs[0] == logs[1]
    assert logs[0].startswith(before)
    assert 2 < before.count(b"\n") < logs[0].count(b"\n")
    assert results[0].summary.report == results[1].summary.report


def test_another_function_is_another_search(candidate, tmp_path):
    em.search(candidate, score, {"task": ITEMS}, budget=8, run=tmp_path)

    def other(model, items):
        return [0.0 * len(item.text) for item in items]

    with pytest.raises(em.EvomergeError, match="belongs to another search: fitness was"):
        em.search(candidate, other, {"task": ITEMS}, budget=8, run=tmp_path)


def test_it_works_in_a_thread(candidate, tmp_path):
    def run(name: str) -> bytes:
        em.search(candidate, score, {"task": ITEMS}, budget=12, run=tmp_path / name)
        return (tmp_path / name / "trials.jsonl").read_bytes()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, "thread").result() == run("main")


def test_what_can_be_put_into_the_model(candidate):
    family, model = candidate.family, candidate.model
    red, base = tuned(Net(), 1), Net().state_dict()

    def state() -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    assert candidate.set({"red": 1.0}) is model
    assert all(torch.allclose(tensor, red[name], atol=1e-6) for name, tensor in state().items())
    candidate.set(0.5)
    constant = state()
    for same in (
        candidate.space.start({"weight": 0.5}),
        {"weight": np.full((4, 2), 0.5)},
        {name: 0.5 for name in family.experts},
    ):
        candidate.base()
        candidate.set(same)
        assert all(torch.equal(tensor, constant[name]) for name, tensor in state().items())
    candidate.base()
    assert all(torch.equal(tensor, base[name]) for name, tensor in state().items())


def test_a_gradient_is_the_slope_of_the_loss(candidate):
    ids = torch.arange(9)
    x = candidate.space.start({"weight": 0.4})

    def value(point: np.ndarray) -> float:
        with torch.no_grad():
            return float(candidate.apply(point)(ids).square().mean())

    candidate.apply(x)
    slope = candidate.gradient(lambda model: model(ids).square().mean())
    numeric = [(value(x + step) - value(x - step)) / 2e-2 for step in 1e-2 * np.eye(len(x))]
    assert slope == pytest.approx(numeric, rel=0.02, abs=1e-3)
    candidate.apply(x)
    halves = candidate.gradient(lambda model: (model(part).square().mean() / 2 for part in (ids, ids)))
    assert halves == pytest.approx(slope, rel=1e-4)


def test_modules_of_transformers_in_memory(tmp_path):
    model = pico(BertModel, BERT, add_pooling_layer=False).eval()
    family = em.Family(model, {"a": tuned(model, 1), "b": tuned(model, 2)})
    candidate = em.Candidate(family, space="layer")

    def score(model, items):
        with torch.no_grad():
            return [-float(model(torch.tensor([[int(item.text) % 50]])).last_hidden_state.norm()) for item in items]

    result = em.search(candidate, score, {"a": ITEMS}, budget=6, searcher="random", items=8, select_items=9)
    loaded = BertModel.from_pretrained(result.save(tmp_path / "merged"), add_pooling_layer=False)
    ours = result.model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in loaded.state_dict().items())


def test_models_are_compared_with_the_winner(candidate, tmp_path):
    more = {"budget": 12, "select_items": 12}
    first = em.search(candidate, score, {"red": ITEMS}, run=tmp_path / "first", **more)
    other = em.search(candidate, score, {"red": ITEMS}, run=tmp_path / "other", seed=2, **more)
    found = em.evaluate(first, "base", "experts", "red")
    assert (found.split, found.models["winner"]) == ("report", first.summary.winner)
    assert found.models["experts"] == first.summary.experts
    assert found.models["red"] == found.models["experts"]
    assert em.evaluate(first, "constant:0.4", other).split == "select"
    assert em.evaluate(first, other, split="report").models[str(other.path)] == other.summary.winner
    with pytest.raises(em.EvomergeError, match="nobody"):
        em.evaluate(first, "nobody")


def test_methods_are_compared(candidate, tmp_path, monkeypatch):
    family, more = candidate.family, {"methods": ["magmax", {"dare": {"density": 0.5}}], "constants": [0.4, 1.0]}
    found = em.compare(family, score, {"red": ITEMS}, run=tmp_path / "compared", **more)
    assert {row.name for row in found.rows} == {"linear", "magmax", "dare(density=0.5)"}
    assert {row.name for row in found.tested} == {"magmax", "dare(density=0.5)"}
    assert str(found).splitlines()[-4].startswith("base")  # three notes follow
    assert "<table>" in found._repr_html_()
    monkeypatch.setitem(api_search.CALLS, "left", 1)  # whoever scores is killed
    again = em.compare(family, score, {"red": ITEMS}, run=tmp_path / "compared", **more)
    assert again == found


def test_a_finished_run_is_loaded(candidate, pico_suite, tmp_path):
    candidate = em.Candidate(em.Family(pico_suite.base, pico_suite.experts), space="model")

    def score(model, items):
        return [float(model.embeddings.word_embeddings.weight[0, 0])] * len(items)

    tasks = {name: em.items(task.items) for name, task in pico_suite.tasks.items()}
    result = em.search(candidate, score, tasks, budget=6, run=tmp_path / "run", select_items=30, report_items=30)
    loaded = em.load(tmp_path / "run")
    assert loaded.summary == result.summary
    ours = {name: tensor.clone() for name, tensor in result.model.named_parameters()}
    theirs = dict(loaded.model.named_parameters())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if "pooler" not in name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda c: em.search(c, 3, {"t": ITEMS}), "3 is no fitness: give a function"),
        (lambda c: em.search(c, "clasification", {"t": ITEMS}), "did you mean 'classification'"),
        (lambda c: em.search(c, score, {"t": ITEMS}, searcher=em.cmaes(sgima=1)), "did you mean 'sigma'"),
        (lambda c: em.search(c, score, {"t": ITEMS}, searcher=4), "4 is no searcher: give the name of one"),
        (lambda c: em.search(c, score, {"t": ITEMS}, budget=0), "budget of trials is 0"),
        (lambda c: em.search(c, score, {}), "fitness.tasks"),
        (lambda c: em.search(c, lambda model: [], {"t": ITEMS}), "takes neither 2 nor 3 arguments"),
        (lambda c: em.search(c, score, {"t": ["a", "b"]}), "no items for the split"),
        (lambda c: em.items([3.5]), "is no item: give a text"),
        (lambda c: em.Candidate(c.family, space="layers"), "did you mean 'layer'"),
        (lambda c: em.Family(Tiny()), "needs experts"),
        (lambda c: em.Family(Tiny().state_dict(), a=Tiny()), "base is a state dict"),
        (lambda c: em.Family(Net(), a={"embed.weight": 3}), "holds tensors by name, and embed.weight is none"),
        (lambda c: em.Family(Net(), a=Net(7)), "was not tuned from base"),
        (lambda c: em.load("/nowhere"), "is no run directory"),
        (lambda c: em.search(c, score, {"t": ITEMS}, evaluator="processes"), "objects of this program"),
        (lambda c: em.search(c, score, {"t": ITEMS}, evaluator="pool"), "There are processes, ray, serial"),
    ],
)
def test_what_is_wrong_is_said(candidate, wrong, message):
    with pytest.raises(em.EvomergeError, match=message):
        wrong(candidate)


def test_numbers_of_numpy_are_numbers_and_wrong_settings_are_refused(candidate):
    result = em.search(candidate, score, {"red": ITEMS}, budget=np.int64(2), start=np.float64(0.4), searcher="random")
    assert len(result.trials) == 2
    for wrong in ({"budget": "many"}, {"seed": 1.5}):
        with pytest.raises(em.EvomergeError):
            em.search(candidate, score, {"red": ITEMS}, **wrong)


def test_the_table_of_a_family_says_how_far_experts_are_from_a_base_of_what_length():
    net = Net()
    further = {name: 3 * tensor for name, tensor in net.state_dict().items()}
    assert " 200.0% " in str(em.Family(net, red=further))


def test_a_task_in_memory_says_whose_it_is_and_what_its_classes_are(candidate):
    labelled = [(str(i), "odd" if i % 2 else "even") for i in range(60)]
    tasks = {"shades": {"items": ITEMS, "expert": "red"}, "more": {"items": labelled, "classes": ["odd", "even"]}}
    result = em.search(candidate, score, tasks, budget=2, searcher="random")
    assert "experts, each on its own task" in str(result)


def test_a_search_begins_where_a_path_says(candidate, tmp_path):
    em.search(candidate, score, {"red": ITEMS}, budget=2, searcher="random", run=tmp_path / "first")
    recipe = tmp_path / "first" / "recipe.yaml"
    begun = [em.search(candidate, score, {"red": ITEMS}, budget=4, start=start) for start in (recipe, str(recipe))]
    assert len({(result.path / "trials.jsonl").read_bytes() for result in begun}) == 1
    with pytest.raises(em.EvomergeError, match=r"nothing\.yaml"):
        em.search(candidate, score, {"red": ITEMS}, budget=4, start=tmp_path / "nothing.yaml")


def test_starts_and_recipes_are_judged_beside_what_is_found(candidate, tmp_path):
    em.search(candidate, score, {"red": ITEMS}, budget=2, searcher="random", run=tmp_path / "first")
    recipe, plain = tmp_path / "first" / "recipe.yaml", {"budget": 3, "searcher": "random", "run": tmp_path / "run"}
    before = em.search(candidate, score, {"red": ITEMS}, **plain)
    log = (before.path / "trials.jsonl").read_bytes()
    given = ["1/K", 0.3, recipe, {"cocktail": {"temperature": 1}}]
    after = em.search(candidate, score, {"red": ITEMS}, **plain, baselines=given)
    names = {f"start {text}" for text in ("1/K", "0.3", str(recipe), "cocktail(temperature=1)")}
    found = after.summary.select.finalists
    assert found.keys() - before.summary.select.finalists.keys() == names
    assert found["start 0.3"] == em.evaluate(after, "constant:0.3", split="select").models["constant:0.3"].mean
    assert (after.path / "trials.jsonl").read_bytes() == log
    with pytest.raises(em.EvomergeError, match=r"baselines: nothing\.yml is no start that needs no search"):
        em.search(candidate, score, {"red": ITEMS}, **plain, baselines=["nothing.yml"])
    with pytest.raises(em.EvomergeError, match=r"baselines: The search would start at 9 .* outside of the bounds"):
        em.search(candidate, score, {"red": ITEMS}, **plain, baselines=[9.0])
    with pytest.raises(em.EvomergeError, match=r"baselines='1/K' has a form .*: write \['1/K', 0.3, 'their.yml'\]"):
        em.search(candidate, score, {"red": ITEMS}, **plain, baselines="1/K")


def test_the_winner_stands_beside_its_parents(candidate, tmp_path):
    plain = {"budget": 3, "searcher": "random", "run": tmp_path / "run"}
    assert em.search(candidate, score, {"red": ITEMS}, **plain).beside is None
    result = em.search(candidate, score, {"red": ITEMS}, **plain, worth=True)
    assert result.beside is not None
    models = em.evaluate(result, "base", "red", "blue", split="report").models
    assert result.beside.result.models == models
    assert list(models) == ["winner", "base", "red", "blue"]
    assert result.beside.worth.single in ("red", "blue")
    assert "what the winner is worth beside base and experts" in str(result)
    assert "merge  best expert  which is  of its gain kept  merge - best expert" in str(result)
    assert em.load(result.path).beside == result.beside
    net = candidate.model
    named = em.Candidate(em.Family(net, base=tuned(net, 1), blue=tuned(net, 2)))
    with pytest.raises(em.EvomergeError, match=r"the expert base has a name .*leave fitness\.worth=true out"):
        em.search(named, score, {"red": ITEMS}, worth=True)


def test_nothing_is_printed(candidate, capfd):
    em.search(candidate, score, {"red": ITEMS}, budget=3, searcher="tpe")
    assert "".join(capfd.readouterr()) == ""


class Turned(torch.nn.Linear):
    def forward(self, input):
        return -super().forward(input)


def test_what_a_module_in_memory_computes_is_part_of_a_search(tmp_path):
    plain = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    turned = torch.nn.Sequential(Turned(2, 2), torch.nn.Linear(2, 1))
    turned.load_state_dict(plain.state_dict())
    tuned = {name: tensor + 0.1 for name, tensor in plain.state_dict().items()}
    more = {"searcher": "random", "budget": 2, "run": tmp_path / "run", "start": 0.4}

    def value(model, items):
        return [float(model(torch.ones(1, 2)))] * len(items)

    em.search(em.Candidate(em.Family(plain, red=tuned), space="tensor"), value, {"red": ITEMS}, **more)
    with pytest.raises(em.EvomergeError, match="another search"):
        em.search(em.Candidate(em.Family(turned, red=tuned), space="tensor"), value, {"red": ITEMS}, **more)


def test_the_tokenizer_of_a_module_in_memory_is_part_of_a_search(pico_suite, tmp_path):
    """A tokenizer that has been used is the same tokenizer, and one with another token is not."""
    net, tokenizer = Net(), AutoTokenizer.from_pretrained(pico_suite.base)
    experts = {"red": tuned(net, 1), "blue": tuned(net, 2)}
    more = {"searcher": "random", "budget": 2, "start": 0.4, "items": 8, "select_items": 6, "report_items": 6}

    def run(tokenizer):
        return em.search(em.Candidate(em.Family(net, experts, tokenizer=tokenizer)), score, {"red": ITEMS}, **more)

    more["run"] = tmp_path / "run"
    run(tokenizer)
    tokenizer(["a longer text", "a text"], padding=True, truncation=True, max_length=5)
    assert len(run(AutoTokenizer.from_pretrained(pico_suite.base)).trials) == len(run(tokenizer).trials) == 2
    tokenizer.add_tokens("unheard")
    with pytest.raises(em.EvomergeError, match="another search"):
        run(tokenizer)


def test_processors_of_any_kind_have_a_hash():
    small, large = processor(), processor()
    large.size = {"height": 9, "width": 9}
    assert digest_processor(small) == digest_processor(processor()) != digest_processor(large)
    assert digest_processor(processor) != digest_processor(pico)  # functions
