"""The comparison with mergekit: distances, verdicts and exit status without it, and the small cases with it."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import logging

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import check_mergekit as command  # noqa: E402
from mergekit_parity import cases, peer, reading  # noqa: E402
from mergekit_parity.compare import Verdict, compare, ulp_distance  # noqa: E402

from evomerge.cli.main import main as evomerge  # noqa: E402
from evomerge.recipes.mergekit.methods import PEERS  # noqa: E402

ENVIRONMENT = Path(os.environ.get("EVOMERGE_MERGEKIT_VENV", command.ENVIRONMENT))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def transformers_speaks_as_before():
    """The script silences transformers for its own process; here the process goes on with other tests."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


def distance(one: float, other: float, dtype: torch.dtype = torch.float32) -> int:
    return int(ulp_distance(torch.tensor([one], dtype=dtype), torch.tensor([other], dtype=dtype)))


@given(st.floats(-1e4, 1e4, width=16), st.integers(0, 5), st.sampled_from(DTYPES))
@settings(max_examples=60, deadline=None)
def test_the_distance_counts_the_numbers_between(start: float, steps: int, dtype: torch.dtype) -> None:
    """Upwards step by step, through zero as well; -0.0 and 0.0 are one number."""
    one = torch.tensor([start]).to(dtype)
    other = one.clone()
    for _ in range(steps):
        other = torch.nextafter(other, torch.tensor([torch.inf]).to(dtype))
    assert int(ulp_distance(one, other)) == int(ulp_distance(other, one)) == steps


def test_distances_that_are_known() -> None:
    assert distance(1.0, 1.0 + 2**-23) == 1
    assert distance(1.0, 1.0 + 2**-7, torch.bfloat16) == 1
    assert distance(1.0, 1.0 + 2**-10, torch.float16) == 1
    assert distance(1.0, 2.0, torch.bfloat16) == 128
    assert distance(-0.0, 0.0) == 0
    tiny = 2**-149  # the smallest float32
    assert distance(-tiny, tiny) == 2
    assert distance(-1.0, 1.0) == 2 * distance(0.0, 1.0)


def model(**tensors: list[float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in tensors.items()}


def test_equal_models_have_no_faults() -> None:
    verdict = compare(model(a=[1, 2], b=[0.5]), model(a=[1, 2], b=[0.5]))
    assert verdict == Verdict(tensors=2, bit_equal=2)


def test_one_unit_is_allowed_and_two_are_not() -> None:
    near, far = 1 + 2**-23, 1 + 2**-22
    assert compare(model(a=[1.0]), model(a=[near])) == Verdict(tensors=1, bit_equal=0, max_ulp=1)
    assert compare(model(a=[-1.0]), model(a=[-far])).faults == ["a differs by up to 2 ulp"]
    halves = [{"a": torch.tensor([value], dtype=torch.bfloat16)} for value in (1.0, 1.0 + 2**-7)]
    assert compare(*halves).max_ulp == 1
    assert compare(model(a=[0.0]), model(a=[-0.0])) == Verdict(tensors=1)  # other bits, the same number


def test_a_number_against_nan_is_a_fault() -> None:
    assert compare(model(a=[1.0]), model(a=[float("nan")])).faults


def test_missing_and_extra_tensors_are_faults() -> None:
    verdict = compare(model(a=[1.0], b=[1.0]), model(b=[1.0], c=[1.0]))
    assert verdict.faults == ["mergekit lacks a", "evomerge lacks c"]
    assert (verdict.tensors, verdict.bit_equal) == (1, 1)


def test_a_tied_tensor_may_be_there_twice_if_it_is_the_same() -> None:
    one, other = model(embed=[1.0]), model(embed=[1.0], head=[1.0])
    tied = {"head": "embed"}
    assert compare(one, other, tied).faults == []
    assert compare(one, other, tied).notes == ["mergekit also writes head, which is tied to embed"]
    assert compare(other, one, tied).notes == ["evomerge also writes head, which is tied to embed"]
    assert compare(one, model(embed=[1.0], head=[2.0]), tied).faults == ["evomerge lacks head"]
    assert compare(one, other, {}).faults == ["evomerge lacks head"]


@pytest.mark.parametrize(
    "other", [torch.ones(2, dtype=torch.bfloat16), torch.ones(1, 2)], ids=["another dtype", "another shape"]
)
def test_another_dtype_or_shape_is_a_fault(other: torch.Tensor) -> None:
    assert "by mergekit" in compare({"a": torch.ones(2)}, {"a": other}).faults[0]


def test_integers_must_be_equal() -> None:
    one, other = {"ids": torch.arange(3)}, {"ids": torch.arange(3) + 1}
    assert compare(one, one).bit_equal == 1
    assert "int64" in compare(one, other).faults[0]


def test_every_granularity_is_there() -> None:
    assert len(cases.ALL) >= 8
    assert set(cases.SMALL) <= set(cases.ALL)
    assert {case.granularity.split(":")[0] for case in cases.ALL} == {
        *("model", "blocks", "layer", "module", "tensor", "line")
    }
    assert len({case.name for case in cases.ALL}) == len(cases.ALL)


def test_cases_of_reading_are_of_many_shapes() -> None:
    texts = [case.text for case in reading.READINGS]
    assert len({(case.text, case.family) for case in reading.READINGS}) == len(texts) >= 20
    assert len({case.name for case in reading.READINGS}) == len(texts)
    assert all(case.why for case in reading.READINGS if case.twin or case.loose)
    assert {peer.name for peer in PEERS} <= {yaml.safe_load(text)["merge_method"] for text in texts}


def run(monkeypatch: pytest.MonkeyPatch, verdicts: list[Verdict], *arguments: str) -> int:
    """The command, with verdicts that are given."""
    left = iter(verdicts)
    monkeypatch.setattr(peer, "make_environment", lambda directory: None)
    monkeypatch.setattr(command, "run_case", lambda case, environment: next(left))
    monkeypatch.setattr(command, "run_reading", lambda case, environment: next(left))
    monkeypatch.setattr(cases, "SMALL", cases.SMALL[: len(verdicts) - 1])
    monkeypatch.setattr(reading, "SMALL_READINGS", reading.SMALL_READINGS[:1])
    return command.main(["--small", *arguments])


def test_the_exit_status_tells_of_any_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    good, bad = Verdict(3, 2, 1), Verdict(3, 2, 7, faults=["a differs by up to 7 ulp"])
    assert run(monkeypatch, [good, good]) == 0
    assert run(monkeypatch, [bad, good]) == 1
    assert "a differs by up to 7 ulp" in capsys.readouterr().err


def test_json_is_a_line_for_each_case_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(monkeypatch, [Verdict(3, 2, 1, notes=["mergekit also writes head"]), Verdict(1, 1)], "--json") == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [list(row) for row in rows] == 2 * [["case", "tensors", "bit_equal", "max_ulp"]]
    assert rows[1] == {"case": reading.SMALL_READINGS[0].name, "tensors": 1, "bit_equal": 1, "max_ulp": 0}
    assert rows[0] == {"case": cases.SMALL[0].name, "tensors": 3, "bit_equal": 2, "max_ulp": 1}
    assert "also writes head" in said.err


def test_an_environment_that_cannot_be_made_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(directory: Path) -> None:
        raise peer.PeerError("no room")

    monkeypatch.setattr(peer, "make_environment", broken)
    assert command.main(["--small"]) == 1
    assert "no room" in capsys.readouterr().err


def environment(path: Path, **programs: str) -> Path:
    """A directory with programs of these shell commands."""
    (path / "bin").mkdir(parents=True)
    for name, text in programs.items():
        file = path / "bin" / name.replace("_", "-")
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    return path


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = json.dumps({"mergekit": peer.MERGEKIT, "torch": peer.metadata.version("torch")})
    installed = []
    monkeypatch.setattr(peer, "_run", lambda command, where: installed.append(command))
    peer.make_environment(environment(tmp_path / "env", python=f"echo '{versions}'"))
    assert not installed


def test_another_torch_is_replaced_by_that_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []
    monkeypatch.setattr(peer, "_run", lambda command, where: commands.append(command))
    found = environment(tmp_path / "env", python='echo \'{"mergekit": "0.1.5", "torch": "1.0"}\'')
    (found / "pyvenv.cfg").touch()
    peer.make_environment(found)
    assert f"torch=={peer.metadata.version('torch')}" in commands[0]
    assert {"mergekit==0.1.5", "pydantic<2.12"} <= set(commands[0])


def test_models_that_mergekit_does_not_know_are_given_as_weight_files(tmp_path: Path) -> None:
    config = tmp_path / "mergekit.yaml"
    config.write_text(yaml.safe_dump({"base_model": "base", "models": [{"model": "a"}, {"model": "b"}]}))
    peer.run_mergekit_pytorch(
        environment(tmp_path / "env", mergekit_pytorch='cp "$1" "$2"'), config, tmp_path / "given"
    )
    document = yaml.safe_load((tmp_path / "given").read_text())
    assert document["base_model"] == "base/model.safetensors"
    assert [row["model"] for row in document["models"]] == ["a/model.safetensors", "b/model.safetensors"]


def test_a_failing_mergekit_is_shown(tmp_path: Path) -> None:
    found = environment(tmp_path / "env", mergekit_yaml="echo what happened >&2; exit 3")
    with pytest.raises(peer.PeerError, match=r"mergekit-yaml failed with status 3:\nwhat happened"):
        peer.run_mergekit(found, tmp_path / "mergekit.yaml", tmp_path / "out")


def test_the_winner_of_a_run_is_merged_from_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A mergekit that gives what evomerge gives: the same bits, and not those of another recipe."""
    (tmp_path / "run").mkdir()
    tied = cases.write_case(cases.Case("llama-tied", "layer"), tmp_path)
    assert tied
    evomerge(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "known")])
    for name in ("recipe.yaml", "mergekit.yaml"):
        (tmp_path / name).rename(tmp_path / "run" / name)
    found = environment(
        tmp_path / "env", mergekit_yaml=f'grep -q "{tmp_path}/base" "$1" && cp -r {tmp_path}/known "$2"'
    )
    monkeypatch.setattr(peer, "make_environment", lambda directory: None)
    monkeypatch.chdir(tmp_path)
    arguments = ["--run", "run", "--venv", str(found), "--json"]
    capsys.readouterr()
    assert command.main(arguments) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["case"] == "run"
    assert row["bit_equal"] == row["tensors"] > 0
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(re.sub(r"a: [\d.-]+,", "a: 0.123,", text))
    assert command.main(arguments) == 1


def test_a_run_without_a_winner_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command.main(["--run", str(tmp_path)])
    assert "no recipe.yaml and no mergekit.yaml" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    not ENVIRONMENT.is_dir(), reason=f"no mergekit in {ENVIRONMENT}: scripts/check_mergekit.py makes it"
)
@pytest.mark.parametrize("case", cases.SMALL, ids=lambda case: case.name)
def test_mergekit_makes_the_same_bits(case: cases.Case) -> None:
    verdict = command.run_case(case, ENVIRONMENT)
    assert verdict.faults == []
    assert verdict.bit_equal == verdict.tensors > 0


@pytest.mark.slow
@pytest.mark.skipif(
    not ENVIRONMENT.is_dir(), reason=f"no mergekit in {ENVIRONMENT}: scripts/check_mergekit.py makes it"
)
@pytest.mark.parametrize("case", reading.SMALL_READINGS, ids=lambda case: case.name)
def test_mergekit_makes_the_same_bits_of_its_own_yaml(case: reading.Reading) -> None:
    verdict = command.run_reading(case, ENVIRONMENT)
    assert verdict.faults == []
    assert verdict.bit_equal == verdict.tensors > 0
