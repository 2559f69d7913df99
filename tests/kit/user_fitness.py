"""A fitness as a user may write it, for the tests that name it as a file and as a module."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Settings:
    sign: float = 1.0


def score(model, tokenizer, items):
    return {task: [one(model, tokenizer, item.text) for item in chosen] for task, chosen in items.items()}


def one(model, tokenizer, text):
    hidden = model(**tokenizer(text, return_tensors="pt").to(model.device)).last_hidden_state
    return Settings().sign * hidden.mean(1)[0, :8].abs().mean().item()
