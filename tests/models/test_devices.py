"""A model over several devices: maps, what is refused; merges, scores and gradients are those of one device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.fitness.heads import FrozenHead, OwnHead
from evomerge.fitness.likelihood import Request, make_batches, score
from evomerge.merging import methods
from evomerge.merging.merger import Merger
from evomerge.models.devices import Devices, checked_map, shared_evenly
from evomerge.models.pretrained import empty_model
from evomerge.models.spreading import devices_of, kinds_of
from evomerge.problem import Sources
from evomerge.runs.engine import of_this_process
from evomerge.runs.evaluator import Plan
from evomerge.runs.families import Opened, open_family, take_family
from evomerge.runs.suite import write_head
from evomerge.space.groups import make_groups
from evomerge.task_vectors.places import Placed
from evomerge.task_vectors.store import task_vectors
from tests.kit.devices import simulated
from tests.kit.language import save_language_family
from tests.kit.models import LLAMA, LLAMA_TIED

NAMES = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head")
ONE, TWO = (dict(zip(NAMES, (f"lazy:{at}" for at in places), strict=True)) for places in ([0] * 6, [0, 0, 0, 1, 1, 1]))
METHODS = (methods.Linear(), methods.Ties(), methods.Della(), methods.Karcher(), methods.Average())
SETTINGS = {"auto_class": "AutoModelForCausalLM", "device": "auto", "compute": None}


@pytest.fixture(autouse=True, scope="module")
def several() -> Iterator[None]:
    with simulated():
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def families(places: Path, several: None) -> dict[str, Opened]:
    """The same on the CPU, on one simulated device, and over two; each test puts the base back."""
    return {name: family(places, where) for name, where in {"cpu": None, "one": ONE, "two": TWO}.items()}


def family(places: Path, where: Any) -> Opened:
    sources = Sources(places / "base", {name: places / name for name in ("left", "right")}, {})
    return open_family(sources, {**SETTINGS, "cache": places / "cache", "device_map": where}, False, Silent())


def merger_of(opened: Opened, method: Any, placed: Placed | None = None) -> Merger:
    vectors = task_vectors(opened.base, opened.experts, opened.parameters, Path(opened.settings["cache"]))
    groups = make_groups("layer", vectors.parameters)
    return Merger(opened.live.model, vectors, groups, method, placed=placed)


def weights(merger: Merger, method: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {each.name: rng.uniform(max(each.low, 0.1), min(each.high, 0.9), merger._shape) for each in method.variables}


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# what is refused


@pytest.mark.parametrize(
    ("device", "given", "said"),
    [
        ("auto", "balanced", "=balanced is no map of modules to devices: write model.device_map=auto, or 'model"),
        ("auto", {}, "is no map of modules"),
        ("cpu", "auto", "model.device=cpu and model.device_map say two things about where the model lies"),
        ("auto", {"": "disk"}, "puts the model on disk, where no weights can be merged: evomerge refuses to offload"),
        ("auto", {"a": "meta"}, "puts a on meta, where no weights"),
        ("auto", {"a": "gpu7"}, "puts a on gpu7, which is no device: write cuda:0"),
        ("auto", {"a": 3}, "puts a on 3, and this process sees no GPU: write model.device_map=auto"),
        ("auto", {"a": "xla:0"}, "puts a on xla:0, which cannot be used here"),
        (
            "auto",
            {"a": "cpu", "b": "lazy:0"},
            "devices of several kinds (cpu, lazy), and what lies on the CPU would be",
        ),
    ],
)
def test_what_means_nothing_here_is_refused_before_a_model_is_loaded(device: str, given: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Devices(device, given).check()
    assert said in str(caught.value)


def test_without_accelerate_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr("evomerge.models.devices.is_accelerate_available", lambda: False)
    Devices("auto", None).check()
    with pytest.raises(ConfigError, match=r"needs accelerate, .* pip install 'evomerge\[large\]'"):
        Devices("auto", "auto").check()


@pytest.mark.parametrize(
    ("config", "where", "said"),
    [
        (LLAMA, {**TWO, "model.layer.1": "lazy:1"}, "names the module model.layer.1, which LlamaForCausalLM has not."),
        (LLAMA, {name: TWO[name] for name in NAMES[:-1]}, "leaves lm_head.weight without a device"),
        (
            LLAMA,
            {**TWO, "model.layers.1.mlp": "lazy:0"},
            "model.layers.1 apart (lazy:0 and lazy:1), and a LlamaDecoder",
        ),
        (LLAMA_TIED, TWO, "lm_head.weight on lazy:1 and model.embed_tokens.weight on lazy:0, and these are one tensor"),
    ],
)
def test_a_map_of_another_model_is_refused(config: Any, where: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_map(empty_model("AutoModelForCausalLM", config), where)
    assert said in str(caught.value)


def test_a_module_in_memory_stays_where_it_is() -> None:
    settings = {"vocabulary": "refuse", "template": "base", "device": "auto", "device_map": "auto", "auto_class": ""}
    module = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="a module stays where it is: spread it before"):
        take_family(module, {"a": module.state_dict()}, settings, None, Silent())


# maps


@pytest.mark.parametrize("tied", [False, True])
def test_layers_are_shared_evenly_and_stay_whole(tied: bool) -> None:
    config = LlamaConfig(**{**LLAMA.to_dict(), "num_hidden_layers": 16, "tie_word_embeddings": tied})
    model = empty_model("AutoModelForCausalLM", config)
    at = devices_of(shared_evenly(model, {f"cuda:{place}": 1 << 30 for place in range(4)}), model)
    held = dict.fromkeys(sorted(set(at.values())), 0)
    for name, parameter in model.named_parameters():
        held[at[name]] += parameter.nbytes
    assert list(held) == [f"cuda:{place}" for place in range(4)]
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    assert max(held.values()) - min(held.values()) < 3 * layer
    assert all(len({at[name] for name in at if name.startswith(f"model.layers.{place}.")}) == 1 for place in range(16))


def test_a_model_that_does_not_fit_is_refused_and_never_offloaded() -> None:
    model = empty_model("AutoModelForCausalLM", LLAMA)
    size = sum(parameter.nbytes for parameter in model.parameters())
    with pytest.raises(ConfigError, match=r"finds no room on cuda:0 \(0.0 GiB\): give a worker more GPUs"):
        shared_evenly(model, {"cuda:0": size // 2})


def test_auto_is_the_cpu_where_there_is_no_gpu(places: Path) -> None:
    assert Devices("auto", "auto").kind == "cpu"
    opened = family(places, "auto")
    assert {parameter.device.type for parameter in opened.live.model.parameters()} == {"cpu"}
    assert opened.live.model.forward.__func__ is LlamaForCausalLM.forward  # without hooks


# two devices


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_merge_over_two_devices_is_that_of_one(families: dict[str, Opened], method: Any) -> None:
    """With task vectors beside their parameters, and with windows of them that come from files."""
    found = []
    for name, placed in (("cpu", None), ("two", None), ("two", Placed("disk", 1, ""))):
        opened = families[name]
        merger = merger_of(opened, method, placed)
        merger.apply(weights(merger, method))
        found.append(state(opened.live.model))
        merger.restore()
        assert all(torch.equal(value, opened.base.tensor(name)) for name, value in state(opened.live.model).items())
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_task_vectors_lie_beside_their_parameters(families: dict[str, Opened]) -> None:
    opened = families["two"]
    at = devices_of(TWO, opened.live.model)
    assert {name: str(parameter.device) for name, parameter in opened.live.model.named_parameters()} == at
    for site in merger_of(opened, methods.Linear())._sites:
        held = [site.live, site.base, *(one for delta in site.deltas for one in delta.layout().tensors)]
        assert {str(one.device) for one in held} == {at[site.span.parameter]}


def test_logits_gradients_and_the_guard_are_those_of_one_device(families: dict[str, Opened]) -> None:
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 1]])
    found = []
    for name in ("one", "two"):
        opened = families[name]
        model, merger = opened.live.model, merger_of(opened, methods.Linear())
        merger.apply(weights(merger, methods.Linear()))
        with merger.guard:
            logits = model(input_ids=ids.to(model.device)).logits  # they come back to where the inputs were
        assert str(logits.device) == "lazy:0"

        def losses(model: Any = model) -> Iterator[torch.Tensor]:
            for row in ids:
                logits = model(input_ids=row[None].to(model.device)).logits
                yield torch.nn.functional.cross_entropy(logits[0, :-1], row[1:].to(logits.device))

        found.append((logits.cpu(), merger.gradient(losses())["weight"]))
        with pytest.raises(RuntimeError, match="the model was changed"), merger.guard:
            model.model.norm.weight.add_(1)
        merger.restore()
    assert torch.equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])
    assert (found[0][1] != 0).all()


def test_likelihoods_with_shared_contexts_are_those_of_one_device(families: dict[str, Opened]) -> None:
    requests = [Request((3, 4, 5), (6, 7)), Request((3, 4, 5), (8, 9, 10)), Request((5,), (6,)), Request((5,), (7, 3))]
    found = []
    for name in ("one", "two"):
        model = families[name].live.model
        found.append(score(model, make_batches(requests, 4, model.device), len(requests)).log_probability)
    assert np.array_equal(*found)


def test_heads_run_where_the_model_ends(families: dict[str, Opened], tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    config = LlamaConfig(**{**LLAMA.to_dict(), "num_labels": 3, "pad_token_id": 0})
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "expert")
    write_head(tmp_path / "head.safetensors", torch.randn(3, 32))
    found = []
    for name in ("one", "two"):
        model = families[name].live.model
        heads = {
            "a": FrozenHead(tmp_path / "head.safetensors"),
            "b": OwnHead(tmp_path / "expert", dict(model.named_parameters())),
        }
        view = heads["b"].module(model)
        assert view.model.layers[0].mlp.up_proj.weight is model.model.layers[0].mlp.up_proj.weight
        inputs = torch.tensor([[3, 4, 5], [6, 7, 0]]).to(model.device)
        mask = (inputs != 0).long()
        rows = torch.tensor([0, 1]).to(model.device)
        outputs = [heads[task].module(model)(input_ids=inputs, attention_mask=mask) for task in heads]
        found.append(
            [heads[task].logits(out, mask, rows, model).cpu() for task, out in zip(heads, outputs, strict=True)]
        )
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_number_of_devices_does_not_count_among_what_scores_depend_on(families: dict[str, Opened]) -> None:
    kinds = [kinds_of({p.device for p in families[name].live.model.parameters()}) for name in ("one", "two")]
    assert kinds == [{"device": "lazy"}] * 2


def test_the_process_that_leads_workers_spreads_nothing_and_holds_no_copies() -> None:
    plan = Plan(workers=2, gpus=2, threads=1, blocks=4)
    led = of_this_process({"model": {"device": "auto", "device_map": "auto", "place": "host", "compute": "auto"}}, plan)
    assert led["model"] == {"device": "cpu", "device_map": None, "place": "disk", "compute": None}
