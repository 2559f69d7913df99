"""Time limits: what hangs is interrupted, nothing rings afterwards, and a hang costs a search one candidate."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evomerge.cli.evaluate import main as evaluate
from evomerge.cli.progress import Reporter
from evomerge.common import limits
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.limits import TimeLimit
from evomerge.problem import Problem
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.search.journal import read_log
from evomerge.search.stopping import Interrupt
from tests.kit.helpers import compose
from tests.processes.command import evomerge

SLOW = """
import time
from safetensors.torch import load_file

KNOWN = load_file({file!r})

def weight(model):
    parameter = dict(model.named_parameters())[{name!r}]
    return float((parameter - KNOWN["base"]).norm() / KNOWN["sum"].norm())

def score(model, tokenizer, items):
    here = weight(model)
    while abs(here - {hangs}) < 0.01:
        try:
            time.sleep(10**6)
        except Exception:
            pass
    return {{task: [-abs(here - 0.6) + 0.01 * len(item.text) for item in chosen] for task, chosen in items.items()}}
"""
"""A user's fitness that hangs at one constant, whatever is raised at it."""


@pytest.fixture(autouse=True)
def nothing_rings_afterwards() -> Iterator[None]:
    """Alarm and handler are somebody else's again (here those of pytest-timeout, or none)."""
    handler, (left, _) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    begun = time.monotonic()
    yield
    now, _ = signal.getitimer(signal.ITIMER_REAL)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert now == pytest.approx(left - (time.monotonic() - begun) if left else 0, abs=5)


def asleep() -> None:
    time.sleep(10**6)


def busy() -> None:
    while True:
        pass


def swallowing() -> None:
    while True:
        try:  # noqa: SIM105
            time.sleep(10**6)
        except Exception:
            pass


def swallowing_once() -> None:
    try:  # noqa: SIM105
        time.sleep(10**6)
    except:  # noqa: E722
        pass
    time.sleep(10**6)


def in_another_form() -> None:
    try:
        time.sleep(10**6)
    except BaseException as error:
        raise ValueError("something else") from error


def waiting() -> None:
    threading.Event().wait()


def in_a_pool() -> None:
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(done.wait).result()
        finally:
            done.set()


def late() -> str:
    try:
        time.sleep(10**6)
    except BaseException:
        return "a result that came too late"
    return ""


def with_an_alarm_of_its_own() -> str:
    old = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(0)  # as `signal.alarm` takes the place of whatever there was
    time.sleep(0.25)
    signal.signal(signal.SIGALRM, old)
    return "a result that came too late"


@pytest.mark.parametrize(
    "compute",
    [asleep, busy, swallowing, swallowing_once, in_another_form, waiting, in_a_pool, late, with_an_alarm_of_its_own],
)
def test_what_hangs_is_interrupted(compute: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AGAIN", 0.1)
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^took longer than time_limit=0\.2 s$") as caught:
        TimeLimit(0.2)(compute)
    assert 0.2 <= time.monotonic() - begun < 20
    assert caught.value.__context__ is None  # nothing holds on to what was interrupted


def test_what_ends_in_time_is_left_alone() -> None:
    assert TimeLimit(60)(lambda: 3) == 3
    assert TimeLimit()(lambda: threading.current_thread()) is threading.main_thread()
    for error in (ValueError("no"), TimeoutError("of another kind"), KeyboardInterrupt(), SystemExit(3)):

        def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            TimeLimit(60)(fail)
        assert caught.value is error


def test_outside_of_the_main_thread_nothing_is_limited_and_a_number_is_refused() -> None:
    limit = TimeLimit(0.01)
    automatic, computed = [], []

    def elsewhere() -> None:
        computed.append(limit(lambda: time.sleep(0.05) or 3))
        automatic.append(TimeLimit("auto"))
        with pytest.raises(ConfigError, match="main thread"):
            TimeLimit(5)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(elsewhere).result()
    automatic[0].measured(1.0)
    assert computed == [3]
    assert automatic[0].seconds is None


def test_it_never_rings_after_the_end() -> None:
    """Computations that end at about the time of the alarm, a thousand times."""
    rng, ended = random.Random(0), {True: 0, False: 0}
    for _ in range(1000):
        limit, end = TimeLimit(0.001), time.perf_counter() + 0.002 * rng.random()

        def work(end: float = end) -> bool:
            while time.perf_counter() < end:
                pass
            return True

        try:
            ended[limit(work)] += 1
        except TimeoutError:
            ended[False] += 1
    assert min(ended.values()) > 100


def test_what_a_with_puts_back_is_put_back_whole() -> None:
    """Also when the alarm comes while it does so."""
    steps: list[str] = []

    class Borrowed:
        def __enter__(self) -> None:
            steps.append("taken")

        def __exit__(self, *_: object) -> None:
            time.sleep(0.3)  # the alarm comes here
            steps.append("put back")

    def compute() -> None:
        with Borrowed():
            pass
        time.sleep(10**6)

    with pytest.raises(TimeoutError):
        TimeLimit(0.1)(compute)
    assert steps == ["taken", "put back"]


def test_a_with_that_is_never_left_is_interrupted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "AGAIN", 0.05)

    class Stuck:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None:
            time.sleep(10**6)

    def compute() -> None:
        with Stuck():
            pass

    with pytest.raises(TimeoutError):
        TimeLimit(0.05)(compute)


def test_somebody_elses_alarm_goes_on() -> None:
    rung: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        TimeLimit(60)(lambda: time.sleep(0.1))
        assert 0.1 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2
        assert not rung
        TimeLimit(60)(lambda: time.sleep(0.3))  # it came while ours was set
        time.sleep(0.1)
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def test_a_signal_that_asks_to_stop_is_kept() -> None:
    with Interrupt() as interrupt:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            interrupt.requested = False
            sender = threading.Timer(0.05, os.kill, (os.getpid(), number))
            sender.start()
            with pytest.raises(TimeoutError):
                TimeLimit(0.2)(asleep)
            sender.join()
            assert interrupt.requested
            assert interrupt.by == number


def test_an_automatic_limit_is_one_of_what_the_base_takes() -> None:
    limit = TimeLimit("auto")
    assert limit.seconds is None
    limit.measured(0.1)
    assert limit.seconds == limits.LEAST
    limit.measured(60.0)
    assert limit.seconds == 60 * limits.TIMES
    limit.seconds = 0.1
    with pytest.raises(TimeoutError, match=r"^took longer than time_limit=auto allows$"):  # no number of a clock
        limit(asleep)
    for setting in (None, 5):
        limit = TimeLimit(setting)
        limit.measured(60.0)
        assert limit.seconds == setting


def test_more_items_may_take_longer() -> None:
    limit = TimeLimit(0.1)
    assert limit(lambda: time.sleep(0.2) or 1, share=20.0) == 1
    with pytest.raises(TimeoutError, match=r"^took longer than time_limit=0\.1 s$"):
        limit(asleep, share=0.01)  # fewer items may take as long
    with pytest.raises(TimeoutError, match=r"^took longer than time_limit=0\.1 s, times 2\.0 for more items$"):
        limit(asleep, share=2.0)


def test_without_an_alarm_a_number_is_refused() -> None:
    def elsewhere(setting: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(TimeLimit, setting).result()

    with pytest.raises(ConfigError, match=r"time_limit=5 needs an alarm .* write time_limit=null"):
        elsewhere(5)
    limit = elsewhere("auto")
    limit.measured(1.0)
    assert limit.seconds is elsewhere(None).seconds is None


@pytest.mark.parametrize("setting", ["0", "-3", "soon", "true", "[1]", ".inf", ".nan"])
def test_what_is_no_time_is_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^time_limit=.* is no time: write the seconds"):
        run_search(compose("model=pico", f"time_limit={setting}"), tmp_path, Reporter())


@pytest.fixture
def settings(pico_suite: Suite, problem: Problem, tmp_path: Path) -> list[str]:
    """Settings of a search over the constants 0.0, 0.5, 1.0 and 1.5, by a fitness that hangs at 1.0."""
    name = next(name for name in problem.vectors.parameters if name.endswith("output.dense.weight"))
    deltas = [problem.vectors.dense(expert, name) for expert in problem.vectors.experts]
    total = torch.stack([delta for delta in deltas if delta is not None]).sum(0)
    save_file({"base": problem.vectors.base.tensor(name).clone(), "sum": total}, tmp_path / "known.safetensors")
    source = SLOW.format(file=str(tmp_path / "known.safetensors"), name=name, hangs=1.0)
    (tmp_path / "slow.py").write_text(source)
    where = [f"model.suite={pico_suite.path}", f"model.cache={tmp_path / 'cache'}", "model.device=cpu"]
    few = ["fitness.items=6", "fitness.select_items=6", "fitness.report_items=6", "budget=4"]
    grid = ["space=model", "space.sharing=shared", "searcher=grid", "searcher.points=4"]
    return ["model=pico", *where, *few, *grid, "fitness=custom", f"fitness.function={tmp_path / 'slow.py'}:score"]


def failures(log: Path) -> list[str]:
    return [line["error"] for line in read_log(log) if line["kind"] == "trial" and line["status"] == "failed"]


def test_a_search_over_a_candidate_that_hangs_and_its_log_after_kills(
    settings: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs one candidate, in the selection too; killed and resumed, the log is byte for byte the same."""
    settings = [*settings, "time_limit=0.7"]
    summary = run_search(compose(*settings), tmp_path / "whole", Reporter())
    assert summary is not None
    assert (summary.trials, summary.failed) == (4, 1)
    assert failures(tmp_path / "whole" / "trials.jsonl") == ["TimeoutError: took longer than time_limit=0.7 s"]
    assert "1.0 could not be scored and is not chosen: TimeoutError: took longer than time_limit=0.7 s" in caplog.text
    assert summary.select.constant == "0.6"
    log = (tmp_path / "whole" / "trials.jsonl").read_bytes()
    killed = tmp_path / "killed" / "trials.jsonl"
    killed.parent.mkdir()
    for cut in (log.index(b'"status":"failed"'), len(log) - 3):  # within the lines of the failed trial, and of the last
        killed.write_bytes(log[:cut])
        run_search(compose(*settings), killed.parent, Reporter())
        assert killed.read_bytes() == log
        (killed.parent / "summary.json").unlink()
    run_search(compose(*settings, "time_limit=0.9", "budget=5"), killed.parent, Reporter())  # of no search's identity
    assert killed.read_bytes() == log


def test_the_limit_in_force_is_printed(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "slow.py"
    source.write_text(source.read_text().replace("while abs", "while False and abs"))
    for setting, said in (("auto", "longer than 600 s fails"), ("0.7", "longer than 0.7 s fails"), ("null", None)):
        run_search(compose(*settings, f"time_limit={setting}", "budget=1"), tmp_path / setting, Reporter())
        assert ("(time_limit)" in (err := capsys.readouterr().err)) == (said is not None)
        assert "; 1 candidate takes about" in err
        assert (said or "") in err


def test_a_limit_that_the_base_does_not_keep_is_refused(settings: list[str], tmp_path: Path) -> None:
    source = tmp_path / "slow.py"
    source.write_text(source.read_text().replace("    here =", "    time.sleep(0.3)\n    here ="))
    with pytest.raises(ConfigError, match=r"fails on the base.*TimeoutError: took longer than time_limit=0\.1 s"):
        run_search(compose(*settings, "time_limit=0.1"), tmp_path / "run", Reporter())
    assert not (tmp_path / "run" / "trials.jsonl").exists()


@pytest.mark.slow
def test_the_command_itself_goes_on_after_a_hang(settings: list[str], tmp_path: Path) -> None:
    done = evomerge("search", *settings, "time_limit=2", f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["trials"], summary["failed"]) == (4, 1)
    assert failures(tmp_path / "run" / "trials.jsonl") == ["TimeoutError: took longer than time_limit=2 s"]
    assert "1 of 4 candidates failed; their errors stand in trials.jsonl" in done.stderr + done.stdout


HANGING = """
import time
def score(model, tokenizer, items):
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("setting", "also"), [("auto", ()), ("0.1", ()), ("auto", ("objective.normalised=true",))], ids=str
)
def test_the_first_scoring_of_the_base_has_a_limit(
    setting: str, also: tuple[str, ...], settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `auto` one of its own, before the time of the base is known; and what it advises is a longer one."""
    monkeypatch.setattr(limits, "FIRST", 0.5)
    monkeypatch.setattr(limits, "LEAST", 0.5)
    (tmp_path / "slow.py").write_text(HANGING)
    with pytest.raises(EvomergeError, match=rf"took longer than the 0\.5 s that time_limit={setting}") as caught:
        run_search(compose(*settings, *also, f"time_limit={setting}"), tmp_path / "run", Reporter())
    assert "time_limit=1, or time_limit=null" in str(caught.value)


def test_the_first_scoring_may_take_longer_than_a_candidate() -> None:
    limit = TimeLimit(0.05)
    assert limit.first(lambda: time.sleep(0.1) or "done") == "done"
    with pytest.raises(TimeoutError):
        limit(lambda: time.sleep(0.1))
    assert TimeLimit(None).first(lambda: "done") == "done"


def test_evaluate_has_a_limit(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "LEAST", 0.3)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "slow.py").write_text(HANGING)
    with pytest.raises(EvomergeError, match="2 of 2 models have no score"):
        evaluate(["base", "constant:0.3", "--json", *settings, "time_limit=0.1"])
    models = json.loads(capsys.readouterr().out)["models"]
    for row in models.values():
        assert row["mean"] is None
        assert "took longer than the 0.3 s that time_limit=0.1 leaves to it" in row["error"]
