"""`evomerge merge --push`: a merged model is sent to a hub, here one of our own, that speaks its language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import BertModel

from evomerge.cli.main import main
from tests.kit.hub import Receiver, point_at, receiving
from tests.kit.merging import make_recipe, save_family
from tests.kit.models import BERT, pico


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a small family."""
    path = tmp_path_factory.mktemp("family")
    experts = save_family(path, pico(BertModel, BERT), experts=2)
    (path / "recipe.yaml").write_text(make_recipe(path / "base", experts, dtype="float32").to_yaml())
    return path / "recipe.yaml"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with receiving() as server:
        point_at(monkeypatch, server.endpoint, tmp_path / "cache")
        yield server


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says when it refuses; nothing is merged."""
    with pytest.raises(SystemExit) as ending:
        main(["merge", *map(str, arguments)])
    assert ending.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("flags", "private"), [([], True), (["--private"], True), (["--public"], False)])
def test_it_is_private_unless_one_says_otherwise(hub, recipe, tmp_path, capsys, flags, private):
    out = tmp_path / "merged"
    main(["merge", str(recipe), str(out), "--push", "lab/merged", *flags])
    assert f"on the hub: {hub.endpoint}/lab/merged\n" in capsys.readouterr().out
    there, files = hub.repositories["lab/merged"]
    assert there == private
    del files[".gitattributes"]
    assert files == {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_an_upload_that_was_cut_off_goes_on(hub, recipe, tmp_path, capsys):
    arguments = [recipe, tmp_path / "merged", "--push", "somebody/merged"]
    hub.broken = 100
    assert f"{tmp_path / 'merged'} is whole: run the same command again." in refused(capsys, *arguments)
    assert set(hub.repositories["somebody/merged"][1]) == {".gitattributes"}
    hub.broken = 0
    hub.repositories["somebody/merged"][1]["config.json"] = b"{}"
    for _ in range(2):
        main(["merge", *map(str, arguments)])
    assert "model.safetensors" in hub.repositories["somebody/merged"][1]


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("merged", [], "--push merged is no name on the hub: write --push owner/name"),
        ("somebody/merged@main", [], "is no name on the hub"),
        ("nobody/merged", [], "--push nobody/merged: you are somebody, lab on the hub; write one as the owner"),
        ("lab/public", [], "this repository is there and public: write --public as well"),
        ("lab/private", ["--public"], "this repository is there and private: write --private as well"),
        ("lab/full", [], "holds weights.bin already, and nothing is overwritten: write another name"),
    ],
)
def test_what_is_refused_before_the_merge(hub, recipe, tmp_path, capsys, name, flags, message):
    hub.repositories |= {"lab/public": (False, {}), "lab/private": (True, {}), "lab/full": (True, {"weights.bin": b""})}
    assert message in refused(capsys, recipe, tmp_path / "merged", "--push", name, *flags)
    assert not (tmp_path / "merged").exists()


def test_another_merge_is_not_overwritten(hub, recipe, tmp_path, capsys):
    main(["merge", str(recipe), str(tmp_path / "merged"), "--push", "lab/merged"])
    files = dict(hub.repositories["lab/merged"][1])
    other = [recipe, tmp_path / "other", "--dtype", "bfloat16"]
    main(["merge", *map(str, other)])
    assert "already, and nothing is overwritten" in refused(capsys, *other, "--push", "lab/merged")
    assert hub.repositories["lab/merged"][1] == files


def test_without_a_token_or_a_network(hub, recipe, tmp_path, capsys, monkeypatch):
    arguments = [recipe, tmp_path / "merged", "--push", "lab/merged"]
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "--push lab/merged needs a token of the hub: run `hf auth login` first" in refused(capsys, *arguments)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "--push lab/merged: " in refused(capsys, *arguments)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "needs the hub, and HF_HUB_OFFLINE is set: unset it" in refused(capsys, *arguments)
    assert "write --push owner/name as well" in refused(capsys, recipe, tmp_path / "merged", "--public")
    assert not (tmp_path / "merged").exists()
