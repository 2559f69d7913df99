"""Losses: what coefficients are learned from by gradient, one number for each item.

In: class logits of some items of one task, (n, C), and what there is to compare them with. Out: losses (n,), natural
logarithms, in float32 or better; the loss of a task is their mean. To add one, write a class here and a YAML in
conf/loss.

    CrossEntropy     -log p(label); needs labels
    Entropy          H(p): AdaMerging (Yang et al. 2024, equation 4); needs nothing but inputs. With `marginal`, minus
                     the entropy of the mean prediction, which is highest when all classes occur (Krause et al. 2010)
    JensenShannon    divergence from what the task's own expert says of the item (Lin 1991); needs no labels
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from evomerge.common.errors import ConfigError


class Loss(Protocol):
    """One number for each item; see the module's docstring.

    Attributes:
        name: of the loss, under which the log holds it.
        labelled: whether it needs labels; if not, it learns from the tasks' unlabeled items where they have any.
        taught: whether it needs the distributions of the experts.
        joint: whether the number of an item depends on the others, so that all inputs of a step must be in one batch.
    """

    name: str
    labelled: bool
    taught: bool
    joint: bool

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the losses (n,) of logits (n, C).

        Args:
            logits: of the candidate.
            target: the experts' probabilities (n, C) for a loss that is taught, else the labels (n,).
        """
        ...


class CrossEntropy:
    """The negative log-probability of the label."""

    name = "cross_entropy"
    labelled = True
    taught = False
    joint = False

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return -log softmax(logits)[label], (n,)."""
        return functional.cross_entropy(_precise(logits), target, reduction="none")


class Entropy:
    """The entropy of the prediction.

    Its gradient is 0 at uniform predictions, so it cannot leave a start at chance level; and it is lowest for a model
    that always says the same with certainty, hence the marginal term.

    Args:
        normalised: divide by log C, so that a task with many classes does not outweigh the others.
        marginal: how much of the entropy of the mean prediction over the items is subtracted.

    Raises:
        ConfigError: a negative `marginal`.
    """

    name = "entropy"
    labelled = False
    taught = False

    def __init__(self, normalised: bool = False, marginal: float = 0.0) -> None:
        if not 0 <= marginal < math.inf:
            raise ConfigError(f"loss.marginal={marginal} must be a number from 0: write 0 to leave it out, or 1.")
        self._normalised, self._marginal = normalised, marginal
        self.joint = marginal > 0

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return H(p) - marginal · H(mean p), (n,); the second term is the same for all."""
        log_p = _log_softmax(logits)
        losses = -(log_p.exp() * log_p).sum(-1)
        if self._marginal:
            log_mean = torch.logsumexp(log_p, dim=0) - math.log(len(log_p))
            losses = losses + self._marginal * (log_mean.exp() * log_mean).sum()
        return losses / math.log(logits.shape[1]) if self._normalised else losses


class JensenShannon:
    """The Jensen-Shannon divergence between the candidate's prediction and the expert's, from 0 to log 2."""

    name = "jensen_shannon"
    labelled = False
    taught = True
    joint = False

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return (KL(p‖m) + KL(q‖m)) / 2 with m = (p + q) / 2, (n,)."""
        log_p = _log_softmax(logits)
        log_q = target.clamp_min(torch.finfo(target.dtype).tiny).log()
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        return ((log_p.exp() * (log_p - log_m)).sum(-1) + (target * (log_q - log_m)).sum(-1)) / 2


def _precise(logits: Tensor) -> Tensor:
    """Return the logits in float32 if they are of half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log probabilities (n, C), finite for finite logits: 0 · log 0 is 0 then, and so is its gradient."""
    log_p = torch.log_softmax(_precise(logits), dim=-1)
    return log_p.clamp_min(torch.finfo(log_p.dtype).min)
