"""A command as fitness: what it is given, what it may answer, what becomes of it. See test_fitness.py too."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import evomerge as em
from evomerge.cli.progress import Reporter
from evomerge.common.directories import ScratchDirectory
from evomerge.common.errors import CommandError, ConfigError, NotFinite
from evomerge.common.limits import TimeLimit
from evomerge.fitness.base import Outcome
from evomerge.fitness.command import Command
from evomerge.fitness.items import make_item, read_items, row_of
from evomerge.models.computing import computed_in
from evomerge.models.live import load_live
from evomerge.recipes.live_directory import writer_of
from evomerge.runs.run import run_search
from evomerge.search.evaluators.scoring import check_finite
from tests.examples.test_examples import example
from tests.kit import outside_command
from tests.kit.helpers import compose
from tests.kit.language import save_tokenizer, write_jsonl
from tests.kit.merging import ADDED, CAUSAL, live_merge, make_recipe, save_family, write
from tests.kit.models import BERT, LLAMA_TIED, pico

PYTHON = f"{sys.executable} -I -S"
ITEMS = {task: [make_item(f"{task} {i}") for i in range(3)] for task in ("animals", "trees")}
IDS = {task: [item.id for item in items] for task, items in ITEMS.items()}
EVERY = "print('\\n'.join(json.dumps({'id': r['id'], 'score': 1}) for r in rows), file=out)"


class Nobody:
    """Writes a model without weights."""

    nbytes = 0

    def prepare(self, directory: Path) -> None:
        (directory / "config.json").write_text("{}")

    def write(self, model: Any, directory: Path) -> None:
        pass


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Command]:
    """Make a command of a few lines of Python, in which `rows` are the items and `out` the open answers."""

    def make(body: str, **settings: Any) -> Command:
        (tmp_path / "mine.py").write_text(
            "import json, os, signal, subprocess, sys, time\nmodel, items, path = sys.argv[1:]\n"
            f"rows = [json.loads(line) for line in open(items)]\nout = open(path, 'w')\n{body}\n"
        )
        (tmp_path / "fast").mkdir(exist_ok=True)
        settings = {"directory": str(tmp_path / "fast"), **settings}
        return Command(f"{PYTHON} '{tmp_path}/mine.py' {{model}} {{items}} {{out}}", **settings).with_writer(Nobody())

    return make


def scored(fitness: Command, ids: Any = IDS) -> Outcome:
    return fitness(None, fitness.prepare(None, ITEMS), ids)


def in_use(tmp_path: Path) -> list[str]:
    """What lies in the fast place beside what is the same for all candidates."""
    return [path.name for each in (tmp_path / "fast").iterdir() for path in each.iterdir() if path.name != "same"]


def test_it_is_given_a_directory_and_the_items_and_its_answers_may_come_in_any_order(command, tmp_path):
    fitness = command(
        "assert os.listdir(model) == ['config.json']\n"
        "score = {'animals': 1, 'trees': 2}\n"
        "for r in rows[::-1]:\n"
        "    assert set(r) == {'id', 'task', 'text', 'label'} and r['label'] is None\n"
        "    print(json.dumps({'id': r['id'], 'score': score[r['task']] + int(r['text'][-1]), 'x': 1}), file=out)\n"
    )
    outcome = scored(fitness)
    assert outcome.items == IDS
    assert {task: rows["score"].tolist() for task, rows in outcome.results.items()} == {
        "animals": [1, 2, 3],
        "trees": [2, 3, 4],
    }
    assert scored(fitness, {"trees": IDS["trees"][2:]}).results["trees"]["score"].tolist() == [4]
    assert in_use(tmp_path) == ["alive"]
    del fitness
    assert list((tmp_path / "fast").iterdir()) == []


def test_it_gives_the_metrics_that_are_named(command):
    fitness = command(EVERY.replace("'score': 1", "'score': 1, 'length': len(r['text'])"), metrics=["length", "score"])
    assert fitness.metrics == ("length", "score")
    results = scored(fitness).results["trees"]
    assert {name: row.tolist() for name, row in results.items()} == {"length": [7, 7, 7], "score": [1, 1, 1]}
    with pytest.raises(CommandError, match=r'is no \{"id": ..., "score": ..., "length": ...\}'):
        scored(command(EVERY, metrics=["score", "length"]))
    for wrong in ("score", [], ["score", "score"], ["task"], 5, True, [5], [["score"]], [""], {"score": 1}):
        with pytest.raises(ConfigError, match=r"fitness\.metrics is .*: write a list of different names"):
            command(EVERY, metrics=wrong)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(3)", "the command ended with status 3, and said nothing on stderr"),
        (
            "print('one\\ntwo\\n\\nthree\\nfour', file=sys.stderr); sys.exit(1)",
            "status 1, saying: two / three / four$",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the command was ended by signal 9"),
        ("os.remove(path)", r"the command has written no \{out\}: it must hold"),
        ("os.remove(path); os.mkdir(path)", r"the command has an \{out\} that nobody can read"),
        ("pass", "the command has scored 0 of 6 items: [0-9a-f]{16} of animals has no line"),
        ("rows.pop(); " + EVERY, "the command has scored 5 of 6 items: [0-9a-f]{16} of trees has no line"),
        ("rows.append(rows[0]); " + EVERY, "line 7 of the command's {out} scores the item [0-9a-f]{16} once more"),
        ("rows.append({'id': 'x'}); " + EVERY, "line 7 of .* scores 'x', and it was not asked for"),
        ("print(json.dumps({'id': rows[0]['id'], 'score': 1, 'task': 'trees'}), file=out)", "not asked for of trees"),
        ("print('0.5', file=out)", r"line 1 of the command's \{out\} is no \{\"id\": ..., \"score\": ...\}: '0.5'"),
        ("print('half', file=out)", "is no .*: 'half'"),
        ("print(json.dumps({'id': rows[0]['id']}), file=out)", "is no .*: "),
        ("print(json.dumps({'id': rows[0]['id'], 'score': None}), file=out)", "is None, which is no number"),
        ("print('{\"id\": \"' + rows[0]['id'] + '\", \"score\": 1' + 400 * '0' + '}', file=out)", "which is no number"),
        ("print(100000 * '[', file=out)", 'is no {"id": ..., "score": ...}'),
        ("print(json.dumps({'id': rows[0]['id'], 'score': 'good'}), file=out)", "is 'good', which is no number"),
        ("print(json.dumps({'id': rows[:1], 'score': 1}), file=out)", "and it was not asked for"),
    ],
)
def test_what_it_may_not_do_costs_the_candidate_and_is_said(command, tmp_path, body, message):
    with pytest.raises(CommandError, match=message):
        scored(command(body))
    assert in_use(tmp_path) in ([], ["alive"])


def test_what_it_writes_into_the_model_is_not_given_to_the_next_one(command):
    fitness = command(
        "with open(model + '/config.json', 'a') as file: file.write(' ')\n"
        + EVERY.replace("'score': 1", "'score': os.path.getsize(model + '/config.json')")
    )
    first, second = (scored(fitness).results["trees"]["score"].tolist() for _ in range(2))
    assert first == second == [3, 3, 3]


def test_a_score_that_is_no_finite_number_is_refused_as_for_any_fitness(command):
    outcome = scored(command(EVERY.replace("'score': 1", "'score': float('nan')")))
    with pytest.raises(NotFinite, match="score of 3 of 3 items of animals is not a finite number"):
        check_finite(outcome)


def test_an_item_of_two_tasks_needs_the_task(command):
    both = {"one": [make_item("same")], "two": [make_item("same")]}
    ids = {task: [items[0].id] for task, items in both.items()}
    fitness = command(EVERY)
    with pytest.raises(CommandError, match=r'one, two have the item [0-9a-f]{16}, so the line needs its "task"'):
        fitness(None, fitness.prepare(None, both), ids)
    fitness = command(EVERY.replace("'score': 1", "'task': r['task'], 'score': len(r['task'] + r['text']) % 2"))
    assert fitness(None, fitness.prepare(None, both), ids).results.keys() == {"one", "two"}


def test_what_takes_too_long_is_ended_with_all_that_it_has_started(command, tmp_path):
    fitness = command(
        f"inner = subprocess.Popen([{sys.executable!r}, '-S', '-c', 'import time; time.sleep(1000)'])\n"
        f"print(os.getpid(), inner.pid, file=open({str(tmp_path / 'pids')!r}, 'w'), flush=True)\n"
        f"os.kill({os.getpid()}, signal.SIGALRM)\n"  # the alarm of the limit, at a moment that is known
        "time.sleep(1000)\n"
    )
    with pytest.raises(TimeoutError, match=r"took longer than time_limit=600 s"):
        TimeLimit(600)(lambda: scored(fitness))
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert not is_alive(pid)
    assert in_use(tmp_path) == ["alive"]


def test_what_it_leaves_running_is_ended(command, tmp_path):
    fitness = command(
        f"inner = subprocess.Popen([{sys.executable!r}, '-S', '-c', 'import time; time.sleep(1000)'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(str(inner.pid))\n{EVERY}"
    )
    scored(fitness)
    assert not is_alive(int((tmp_path / "pids").read_text()))


def test_what_it_has_started_ends_with_evomerge_even_when_that_is_killed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from evomerge.common.processes import ProcessGroup\n"
        "inner = 'sleep 1000 & echo $$ $! >pids.new; mv pids.new pids; sleep 1000'\n"
        "with ProcessGroup(['sh', '-c', inner], Path('said')) as running: running.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) as evomerge:
        while not (tmp_path / "pids").exists():
            time.sleep(0.02)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert [Path(f"/proc/{pid}").exists() for pid in pids] == [True, True]
        evomerge.kill()
    assert not any(is_alive(pid) for pid in pids)


def test_a_program_that_cannot_be_started_costs_the_candidate(command, tmp_path):
    (tmp_path / "none").write_text("\0")
    (tmp_path / "none").chmod(0o755)
    fitness = Command(f"{tmp_path}/none {{model}} {{items}} {{out}}", str(tmp_path)).with_writer(Nobody())
    with pytest.raises(CommandError, match=r"status 1, saying: .*/none cannot be started: Exec format error$"):
        scored(fitness)


def is_alive(pid: int) -> bool:
    """Whether a process does anything yet; one that has just been killed may take a moment."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_of_the_living(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from evomerge.common.directories import ScratchDirectory\n"
        "scratch = ScratchDirectory(Path(sys.argv[1]), 'mine'); (scratch.path / 'weights').write_text('heavy')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    (tmp_path / "mine-of-somebody").mkdir()
    living = ScratchDirectory(tmp_path, "mine")
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    other = ScratchDirectory(tmp_path, "mine")
    assert set(tmp_path.iterdir()) == {tmp_path / "mine-of-somebody", living.path, other.path}
    del living
    assert set(tmp_path.iterdir()) == {tmp_path / "mine-of-somebody", other.path}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python x.py {model} {out}", r"lacks \{items\}, so it cannot score a model: write fitness.command='python"),
        ("python x.py", r"lacks \{model\}, \{items\}, \{out\}"),
        ("python {model} {items} {out} {gpu}", r"has the place \{gpu\}, and a command is told \{model\}, \{items\}"),
        ("python {model} {items} {out} {}", "cannot be read: "),
        ("python {model.parent} {model} {items} {out}", r"has the place \{model.parent\}"),
        ("python {model} {items} {out} {", "cannot be read: "),
        ("python '{model} {items} {out}", "cannot be read: No closing quotation"),
        ("no-such-program {model} {items} {out}", "there is no program no-such-program that can be run"),
        ("", "lacks"),
    ],
)
def test_commands_that_are_refused_before_anything_runs(command, message):
    with pytest.raises(ConfigError, match=message):
        Command(command)


def test_a_doubled_brace_stands_for_itself(command, tmp_path):
    (tmp_path / "says.py").write_text("import sys; sys.exit(sys.argv[1])")
    fitness = Command(f"{PYTHON} {tmp_path}/says.py '{{{{a}}}} b' {{model}} {{items}} {{out}}", str(tmp_path))
    with pytest.raises(CommandError, match=r"saying: \{a\} b$"):
        scored(fitness.with_writer(Nobody()))


def test_places_without_room_or_that_are_none_are_refused(command, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"fitness\.directory=.*/none is no directory"):
        command(EVERY, directory=str(tmp_path / "none"))
    monkeypatch.setattr("shutil.disk_usage", lambda place: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(ConfigError, match=r"takes 0\.02 GiB, and there is no room for it: .*/fast has 0\.00 GiB"):
        scored(command(EVERY))


def test_its_words_and_its_files_are_its_identity_and_where_it_works_is_not(tmp_path):
    def identity(text: str, *, of: str = "a", **settings: Any) -> Any:
        (tmp_path / of).mkdir(exist_ok=True)
        (tmp_path / of / "mine.py").write_text(text)
        return Command(f"python {tmp_path / of}/mine.py {{model}} {{items}} {{out}}", **settings).identity()

    def with_file(text: str) -> Any:
        (tmp_path / "judge.py").write_text(text)
        return identity("1", files=[str(tmp_path / "judge.py")])

    same = identity("1")
    assert same == identity("1", of="b", directory=str(tmp_path)) != identity("2")
    assert same != with_file("3") == with_file("3") != with_file("4")
    assert str(tmp_path) not in json.dumps([same, with_file("3")])
    with pytest.raises(ConfigError, match=r"fitness\.files: .*/judge is no file"):
        identity("1", files=[str(tmp_path / "judge")])


def cast_to(model: Any, dtype: torch.dtype) -> Any:
    return model.to(dtype)


@pytest.mark.parametrize("kind", ["tied bfloat16", "shards", "headless"])
def test_the_directory_is_that_of_the_merge_byte_for_byte(kind, tmp_path):
    """Also where the live model computes in a wider dtype than the checkpoint."""
    from transformers import BertModel, LlamaForCausalLM

    if kind == "headless":
        paths, auto_class = save_family(tmp_path, pico(BertModel, BERT)), "AutoModel"
    else:
        dtype = torch.bfloat16 if "bfloat16" in kind else torch.float32
        size: dict[str, Any] = {"max_shard_size": "20KB"} if kind == "shards" else {}
        paths, auto_class = save_family(tmp_path, cast_to(pico(LlamaForCausalLM, LLAMA_TIED), dtype), **size), CAUSAL
        save_tokenizer(tmp_path / "base")
    base = tmp_path / "base"
    recipe = make_recipe(base, paths, auto_class=auto_class, dtype="bfloat16" if "bfloat16" in kind else "float32")
    merged = write(recipe, tmp_path, tmp_path / "merged")
    live = load_live(base, auto_class, "cpu", needs_processor=False)
    if "bfloat16" in kind:
        live = computed_in(live, "float32")
    writer, out = writer_of(live, live.open(base)), tmp_path / "out"
    for name, tensor in live_merge(recipe, base, paths, tmp_path / "cache").items():
        live.model.get_parameter(name).copy_(tensor)
    out.mkdir()
    writer.prepare(out)
    writer.write(live.model, out)
    files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert files == {path.relative_to(merged) for path in merged.rglob("*") if path.is_file()} - set(map(Path, ADDED))
    for name in files:
        assert (out / name).read_bytes() == (merged / name).read_bytes(), name
    assert writer.nbytes == pytest.approx(sum((out / name).stat().st_size for name in files), rel=0.2)
    next(live.model.parameters()).view(-1)[0] = float("inf")
    with pytest.raises(NotFinite, match=r"\.weight of the merged model is not finite, so"):
        writer.write(live.model, out)


@pytest.fixture
def search(language_family: Path, tmp_path: Path) -> list[str]:
    """Settings of a search whose candidates a command scores."""
    rows = [{"text": " ".join(f"w{(i * j) % 36}" for j in range(1, 6))} for i in range(60)]
    (tmp_path / "fast").mkdir()
    return [
        f"model.base={language_family}/base",
        f"model.experts=[{language_family}/left,{language_family}/right]",
        f"model.cache={tmp_path / 'cache'}",
        "model.auto_class=AutoModelForCausalLM",
        "model.device=cpu",
        "space=model",
        "searcher=random",
        "budget=4",
        "fitness=command",
        f"fitness.tasks={{texts: {write_jsonl(tmp_path / 'texts.jsonl', rows)}}}",
        "fitness.items=5",
        f"fitness.directory={tmp_path / 'fast'}",
    ]


def test_a_search_scores_what_is_written_in_the_end(search, tmp_path):
    """The winner is scored anew from its directory, and there by the example as well."""
    own = f"'{PYTHON} {outside_command.__file__} {{model}} {{items}} {{out}}'"
    summary = run_search(compose(*search, f"fitness.command={own}"), tmp_path / "run", Reporter())
    assert summary is not None
    assert list((tmp_path / "fast").iterdir()) == []
    merged = em.load(tmp_path / "run").save(tmp_path / "merged")
    rows = [
        {"task": "texts", **row_of(item)} for item in read_items(tmp_path / "texts.jsonl", "report", labelled=False)
    ]
    items, out = str(write_jsonl(tmp_path / "items.jsonl", rows)), tmp_path / "out.jsonl"
    means = []
    for main in (outside_command.main, example("command").main):
        main(str(merged), items, str(out))
        scores = [json.loads(line)["score"] for line in out.read_text().splitlines()]
        means.append(sum(scores) / len(rows))
    assert means[0] == pytest.approx(summary.winner.mean, abs=1e-12)
    assert -math.log(50) * 2 < means[1] < 0  # of fifty words


def test_a_command_that_fails_on_some_costs_these(search, tmp_path):
    (tmp_path / "mine.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(outside_command.__file__).parent)!r})\n"
        "from outside_command import main, weights\nfrom pathlib import Path\n"
        f"seen = Path({str(tmp_path / 'seen')!r}); number = len(seen.read_text()) if seen.exists() else 0\n"
        "seen.write_text('x' * (number + 1))\n"
        "if number == 2: raise RuntimeError('no luck in ' + sys.argv[1])\n"
        "main(*sys.argv[1:])\n"
    )
    done = run_search(
        compose(*search, f"fitness.command='{PYTHON} {tmp_path}/mine.py {{model}} {{items}} {{out}}'"),
        tmp_path / "run",
        Reporter(),
    )
    assert done is not None
    failed = [str(trial.error) for trial in em.load(tmp_path / "run").trials if trial.status == "failed"]
    assert len(failed) == 1
    assert failed[0].startswith("CommandError: the command ended with status 1, saying: ")
    assert failed[0].endswith("RuntimeError: no luck in …/model")
