import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

from evomerge.common.errors import SuiteError
from evomerge.demo.finetune import predict
from evomerge.demo.pico import CLASSES, SIZES, build_pico
from evomerge.fitness.items import read_items


@pytest.fixture(scope="module")
def suite(pico_suite):
    return pico_suite


def encoder(path):
    return BertModel.from_pretrained(path, add_pooling_layer=False).eval()


def global_state():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002


def accuracy(model, tokenizer, task, split):
    items = read_items(task.items, split, task.classes)
    predicted = predict(model, tokenizer, [item.text for item in items], load_file(task.head)["weight"], 20)
    return float(np.mean(predicted == [item.label for item in items]))


def test_experts_are_specialists_and_a_plain_merge_leaves_room(suite):
    tokenizer = AutoTokenizer.from_pretrained(suite.base)
    model = encoder(suite.base)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    experts = {name: encoder(path).state_dict() for name, path in suite.experts.items()}
    scores = {}
    for name, task in suite.tasks.items():
        model.load_state_dict(base)
        before = accuracy(model, tokenizer, task, "report")
        model.load_state_dict(experts[name])
        scores[name] = accuracy(model, tokenizer, task, "report")
        assert before + 0.1 < scores[name] < 0.95
    constants = []
    for weight in (0.2, 0.4, 0.6, 0.8, 1.0):
        model.load_state_dict({n: t + weight * sum(e[n] - t for e in experts.values()) for n, t in base.items()})
        constants.append(np.mean([accuracy(model, tokenizer, task, "report") for task in suite.tasks.values()]))
    assert max(constants) > 0.5  # merging works
    assert np.mean(list(scores.values())) - max(constants) > 0.03  # and could work better


def test_embeddings_of_the_experts_are_those_of_the_base(suite):
    base = load_file(suite.base / "model.safetensors")
    for path in suite.experts.values():
        expert = load_file(path / "model.safetensors")
        moved = {name for name in base if not torch.equal(base[name], expert[name])}
        assert moved == {name for name in base if not name.startswith("embeddings.")}


def test_splits_are_disjoint_and_of_the_promised_size(suite):
    texts = []
    for name, task in suite.tasks.items():
        assert task.classes == CLASSES[name]
        for split, size in SIZES.items():
            items = read_items(task.items, split)
            assert len(items) == size
            assert split == "unlabeled" or {item.label for item in items} == set(range(len(task.classes)))
            texts += [item.text for item in items]
    assert len(set(texts)) == len(texts)


def test_the_same_seed_gives_the_same_suite_and_global_generators_stay_as_they_are(suite, tmp_path):
    state = global_state()
    again = build_pico(tmp_path / "again")
    assert global_state() == state
    files = [file.relative_to(suite.path) for file in suite.path.rglob("*") if file.is_file()]
    assert len(files) > 20
    for file in files:
        assert (again.path / file).read_bytes() == (suite.path / file).read_bytes(), file


def test_a_finished_suite_is_kept_and_an_unfinished_one_built_anew(suite, tmp_path):
    path = shutil.copytree(suite.path, tmp_path / "copy")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != ".lock"}
    assert build_pico(path).experts.keys() == suite.experts.keys()
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name != ".lock"}
    (path / "suite.json").unlink()
    (path / "experts" / "trees" / "model.safetensors").write_bytes(b"half a fi")
    build_pico(path)
    expert = "experts/trees/model.safetensors"
    assert (path / expert).read_bytes() == (suite.path / expert).read_bytes()


@pytest.mark.parametrize("plan", [None, "{}", '{"seed": 0, "batch": 32}\n'])
def test_a_directory_that_no_build_of_pico_began_is_refused_and_stays_as_it_is(tmp_path, plan):
    mine = tmp_path / "pico"
    for part in ("base", "experts/mine"):
        (mine / part).mkdir(parents=True)
        (mine / part / "model.safetensors").write_bytes(b"precious")
    if plan:  # also that of an unfinished suite of another kind
        (mine / "plan.json").write_text(plan)
    before = {file: file.read_bytes() for file in mine.rglob("*") if file.is_file()}
    with pytest.raises(SuiteError, match=r"holds other files, like base, and no pico suite.*choose a new or an empty"):
        build_pico(mine)
    assert {file: file.read_bytes() for file in mine.rglob("*") if file.is_file()} == before


def test_a_finished_suite_without_a_plan_is_opened(suite, tmp_path):
    path = shutil.copytree(suite.path, tmp_path / "copy")
    (path / "plan.json").unlink()
    assert build_pico(path).experts.keys() == suite.experts.keys()
