"""A command as fitness: how probable a model finds texts, scored with transformers from its directory.

    evomerge search model.base=BASE 'model.experts=[A,B]' model.auto_class=AutoModelForCausalLM \\
        'fitness.tasks={mine: mine.jsonl}' fitness=command \\
        fitness.command='python examples/command.py {model} {items} {out}'

With vLLM (which we have not run) the model is `vllm.LLM(model=model)`, and a judge reads what its `generate` says.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.inference_mode()
def main(model: str, items: str, out: str) -> None:
    live = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    scores = []
    for line in Path(items).read_text(encoding="utf-8").splitlines():
        item = json.loads(line)  # {"id", "task", "text", "label"}
        words = tokenizer(item["text"], return_tensors="pt").input_ids
        score = -live(input_ids=words, labels=words).loss.item()  # higher is better
        scores.append({"id": item["id"], "task": item["task"], "score": score})
    Path(out).write_text("".join(json.dumps(score) + "\n" for score in scores), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
