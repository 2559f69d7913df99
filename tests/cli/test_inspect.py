"""`evomerge inspect`, as people call it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from evomerge.cli.inspect import main
from evomerge.cli.progress import Reporter
from evomerge.cli.tables import show
from evomerge.common.errors import CheckpointError, EvomergeError
from tests.kit.models import LLAMA, pico
from tests.processes.command import evomerge


@pytest.fixture
def place(own_classifiers, tmp_path, monkeypatch):
    """The directory of a user: a base, two classifiers, and their items."""
    path = shutil.copytree(own_classifiers, tmp_path / "user")
    monkeypatch.chdir(path)
    return path


def answer(capsys, *arguments: str) -> dict:
    main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_directories(place, capsys):
    before = set(place.rglob(".cache/**/*.safetensors"))
    main(["base", "mood", "topic"])
    said = capsys.readouterr().out
    lines = [line.strip() for line in said.splitlines()]
    assert lines[:3] == ["base  base", "mood  mood", "topic  topic"]
    for title in ("Models, where they differ", "Task vectors", "Pairs of experts: cosines", "‖τ‖/‖θ₀‖ in %"):
        assert any(line.startswith(title) for line in lines), title
    assert said.index("│ embeddings") < said.index("│ encoder.layer.0 ") < said.index("│ encoder.layer.1 ")
    assert "how long it takes to score one is measured where there are tasks" in said
    assert "try first  two experts: " in said
    assert lines[-1].startswith("warning  expert topic has classifier.bias")
    assert set(place.rglob(".cache/**/*.safetensors")) == before


def test_settings_and_directories_say_the_same(place, capsys):
    one = answer(capsys, "base", "mood", "topic")
    two = answer(capsys, "model.base=base", "model.experts=[mood, topic]")
    for result in (one, two):
        assert result.pop("needs")["merge"] > 0
    assert one == two


def test_with_tasks_a_search_is_estimated(place, capsys):
    tasks = "fitness.tasks={mood: mood.jsonl, topic: topic.jsonl}"
    result = answer(capsys, "base", "mood", "topic", tasks, "budget=50", "fitness.items=8")
    needs = result["needs"]
    assert (needs["items"], needs["budget"]) == (8, 50)
    assert needs["search"] == pytest.approx(50 * (needs["merge"] + needs["score"]))
    assert any(text.startswith("few search items") for text in result["warnings"])
    main(["base", "mood", "topic", tasks, "fitness.items=8"])
    assert "to score it on 8 items; 200 candidates take about" in capsys.readouterr().out
    main(["base", "mood", "topic", tasks, "fitness.items=8", "budget=1"])
    assert "1 candidate takes about" in capsys.readouterr().out


def test_a_suite(pico_suite, tmp_path, capsys):
    cache = f"model.cache={tmp_path}"
    result = answer(capsys, "model=pico", f"model.suite={pico_suite.path}", "model.experts=[trees, metals]", cache)
    assert result["compared"] == ["trees", "metals"]
    assert result["needs"]["search"] > 0


def test_kinship(place, capsys):
    whole = answer(capsys, "base", "mood", "topic")["whole"]
    main(["base", "mood", "topic", "--kinship"])
    said = capsys.readouterr().out.split("Kinship of experts")[1]
    assert f"{whole['pearson'][0][1]:.3f}" in said
    assert f"{whole['distances'][0][1]:.3g}" in said


def test_the_curve_between_models(pico_suite, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [f"model.suite={pico_suite.path}", "model=pico", "fitness.items=30"]
    found = answer(capsys, *given, "--curve", "base:trees", "trees:metals")["curves"]
    assert [(one["one"], one["other"]) for one in found] == [("base", "trees"), ("trees", "metals")]
    first, second = found
    assert len(first["losses"]) == 11
    assert first["losses"][-1] == second["losses"][0] < first["losses"][0]
    for one in found:
        ends, middle = one["losses"][0] + one["losses"][-1], one["losses"][5]
        assert one["barrier"] >= max(0, middle - ends / 2) - 1e-9
    main([*given, "--curve", "evaluator=processes"])
    said, notes = capsys.readouterr()
    assert "note: this process scores curves, one point after the other, whatever evaluator=processes says" in notes
    for pair in ("animals to trees", "animals to metals", "trees to metals"):
        assert pair in said
    assert "barrier" in said
    with pytest.raises(EvomergeError, match=r"--curve: .*'mood'.*base, animals"):
        main([*given, "--curve", "mood:trees"])
    with pytest.raises(EvomergeError, match="--curve base is one model: write two"):
        main([*given, "--curve", "base"])
    with pytest.raises(EvomergeError, match="is a linear merge: leave out"):
        main([*given, "--curve", "method=ties"])


def test_what_does_not_fit_is_said_last_and_sets_the_status(place, capsys):
    pico(LlamaForCausalLM, LLAMA).save_pretrained(place / "other")
    with pytest.raises(SystemExit) as stopped:
        main(["base", "other", "mood", "nothing"])
    assert stopped.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert "Its architecture is not the base's" in lines[-2]
    assert "error  nothing: nothing does not exist" in lines[-1]
    with pytest.raises(SystemExit):
        main(["base", "nothing", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["compared"], result["needs"], [one["name"] for one in result["errors"]]) == ([], None, ["nothing"])
    with pytest.raises(SystemExit):
        main(["base", "nothing"])
    assert "Task vectors" not in capsys.readouterr().out


@pytest.mark.parametrize("experts", [1, 2, 9, 24])
def test_tables_fit_a_terminal(place, capsys, monkeypatch, experts):
    names, shown = [f"expert_with_a_name_{k}" for k in range(experts)], []
    for name in names:
        (place / name).symlink_to(place / "mood")
    monkeypatch.setattr("evomerge.cli.tables.show", lambda result, reporter: shown.append(result))
    main(["base", *names])
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    for width in (80, 120, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        capsys.readouterr()
        show(*shown, Reporter())
        lines = capsys.readouterr().out.splitlines()
        begin = next(i for i, line in enumerate(lines) if "Task vectors τ" in line)
        assert max(len(line) for line in lines if line.startswith(("┏", "│", "└"))) <= width
        rows = [line for line in lines[begin:] if line.startswith("│")]
        assert len(rows) > experts
        assert not [row for row in rows if not row.split("│")[1].strip()]  # none is folded into two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base"], "name its experts behind it"),
        ([], "Nothing to inspect is named"),
        (["base", "mood", "model=text"], "named twice, by directories and by settings"),
        (["base", "mood", "modle.base=x"], "There is no setting 'modle.base'"),
        (["base", "mood", "--density", "0"], "write a number above 0"),
        (["nowhere", "mood"], "nowhere does not exist"),
    ],
)
def test_mistakes(place, arguments, message):
    with pytest.raises(EvomergeError, match=message):
        main(arguments)


def test_a_base_that_is_an_adapter(place):
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text("{}")
    save_file({"x.lora_A.weight": torch.zeros(1, 1)}, place / "adapter" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="PEFT adapter"):
        main(["adapter", "mood"])


def test_the_standard_library_keeps_its_name():
    import inspect

    assert inspect.__file__ is not None
    assert "evomerge" not in inspect.__file__
    assert inspect.signature(main).parameters.keys() == {"arguments"}


@pytest.mark.slow
def test_the_command(place):
    done = evomerge("inspect", "--help", cwd=place)
    assert done.returncode == 0
    assert "usage: evomerge inspect BASE EXPERT" in done.stdout
    done = evomerge("inspect", "base", "mood", "topic", "--json", cwd=place)
    assert (done.returncode, json.loads(done.stdout)["compared"]) == (0, ["mood", "topic"])
    done = evomerge("inspect", "base", "mood", "nothing", cwd=place)
    assert done.returncode == 1
    assert "error  nothing: nothing does not exist" in done.stdout
    done = evomerge("inspect", "nowhere", "mood", cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("evomerge: nowhere does not exist")
