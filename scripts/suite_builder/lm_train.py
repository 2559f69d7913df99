"""Fine-tuning of a causal language model on answers, or on whole texts: how the `lm` suite gets its experts.

In: a model and documents as tokens. Out: the model, tuned in place by the mean cross-entropy of answer tokens; prompts
are read and not learned. Embeddings are frozen, and with them the tied head: their task vectors are exactly zero, and
neither gradient nor optimiser state costs memory. Logits are made only where a token is learned: the head of SmolLM2 is
a fifth of its multiplications. No global random state: the order comes from `np.random.default_rng`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional

from suite_builder.lm_documents import Asked

WARMUP = 0.1  # share of the steps in which the learning rate rises; then it falls linearly to zero


def fine_tune(
    model: Any,
    asked: Sequence[Asked],
    *,
    steps: int,
    lr: float,
    seed: int,
    batch: int = 10,
    max_tokens: int = 96,
    state: Path | None = None,
    every: int = 20,
    on_step: Callable[[], object] = lambda: None,
) -> None:
    """Tune all but the embeddings, in place: AdamW, warm-up and linear decay, gradients clipped to norm 1.

    Args:
        model: a causal language model of transformers; afterwards its parameters want no gradients.
        asked: N documents; each is drawn once before any is drawn again.
        steps: optimiser steps.
        lr: highest learning rate.
        seed: of the order of the data; the same seed on the same machine gives the same weights.
        batch: documents a step.
        max_tokens: longer ones are cut at the end.
        state: file in which an interrupted call left where it was, and this one will; None: it begins anew.
        every: steps between two times that the state is written.
        on_step: called after each step, also those that an interrupted call has done.
    """
    model.eval()  # dropout would draw from torch's global generator
    model.requires_grad_(True)
    model.get_input_embeddings().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    warmup = max(1, round(WARMUP * steps))
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(asked)) for _ in range(-(-steps * batch // len(asked)))])
    done = 0 if state is None else _restore(state, parameters, optimiser)
    for step in range(steps):
        if step >= done:
            drawn = order[step * batch : (step + 1) * batch]
            optimiser.param_groups[0]["lr"] = lr * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
            optimiser.zero_grad()
            answer_loss(model, [asked[i] for i in drawn], max_tokens).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            if state is not None and (step + 1) % every == 0:
                _keep(state, parameters, optimiser, step + 1)
        on_step()
    model.requires_grad_(False)


def answer_loss(model: Any, asked: Sequence[Asked], max_tokens: int) -> torch.Tensor:
    """Return the mean cross-entropy of the tokens of the right answers, a scalar in nats."""
    rows = [(one.prompt + one.answers[one.label])[:max_tokens] for one in asked]
    # no attention mask: what is padded comes after all that is learned, and a causal model does not look ahead
    inputs = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    targets = torch.full_like(inputs, -1)
    for i, (row, one) in enumerate(zip(rows, asked, strict=True)):
        inputs[i, : len(row)] = torch.tensor(row)
        targets[i, len(one.prompt) - 1 : len(row) - 1] = torch.tensor(row[len(one.prompt) :], dtype=torch.long)
    hidden = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state  # (B, T, d)
    learned = targets >= 0
    return functional.cross_entropy(model.get_output_embeddings()(hidden[learned]), targets[learned])


def _keep(file: Path, parameters: Sequence[torch.nn.Parameter], optimiser: torch.optim.Optimizer, done: int) -> None:
    """Write parameters and moments; safetensors replaces the file in one step."""
    tensors = {f"{i}.value": parameter.detach() for i, parameter in enumerate(parameters)}
    for i, parameter in enumerate(parameters):
        tensors |= {f"{i}.{name}": tensor for name, tensor in optimiser.state[parameter].items()}
    save_file(tensors, file, {"done": str(done)})


@torch.no_grad()
def _restore(file: Path, parameters: Sequence[torch.nn.Parameter], optimiser: torch.optim.Optimizer) -> int:
    """Put back what `_keep` wrote, if there is something; return the number of steps that it had done."""
    try:
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118  not a dictionary
                number, name = key.split(".")
                parameter = parameters[int(number)]
                if name == "value":
                    parameter.copy_(stored.get_tensor(key))
                else:
                    optimiser.state[parameter][name] = stored.get_tensor(key)
            return int(stored.metadata()["done"])
    except FileNotFoundError:
        return 0
