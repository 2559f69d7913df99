"""Linear probes: heads that are fitted to the features of a base as it is.

In: features of items and their labels. Out: a ridge regression from the standardised features to one-hot classes. Ridge
and scale of the logits are those with the least cross-entropy on these items, each predicted by a probe that has not
seen it (leave-one-out residuals in closed form: Allen 1974).
"""

import numpy as np
from scipy.special import log_softmax

RIDGES = tuple(10.0**k for k in np.arange(-4, 2.5, 0.5))  # in units of the features' variance
SCALES = tuple(2.0**k for k in np.arange(0, 6, 0.5))
FLAT = 1e-3
"""A feature with a deviation below this share of the median one says nothing: the probe leaves it out, since its weight
would make logits of what any other model has there."""


def fit_probe(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit a linear probe in closed form.

    Args:
        features: (N, d), float64.
        labels: (N,).
        classes: their number C.

    Returns:
        Weight (C, d), bias (C,) and scale of the head: logits = scale * features @ weight.T + bias.
    """
    mean, std = features.mean(0), features.std(0) + 1e-8
    std[std < FLAT * np.median(std)] = np.inf
    x = (features - mean) / std
    targets = np.eye(classes)[labels]
    share = targets.mean(0)
    y = targets - share
    # x = u s vᵀ: for every ridge, predictions are u (s² / (s² + ridge)) uᵀ y
    values, vectors = np.linalg.eigh(x.T @ x / len(x))  # s² / N and v
    along = x @ vectors  # u s, (N, d)
    fitted = along.T @ y / len(x)  # (d, C)
    best = (np.inf, 0.0, 0.0)
    for ridge in RIDGES:
        leverage = 1 / len(x) + (along**2 / (values + ridge)).sum(1) / len(x)  # of the mean, and of the regression
        residuals = (y - along @ (fitted / (values + ridge)[:, None])) / (1 - leverage)[:, None]
        unseen = targets - residuals  # predictions of each item by the probe of all others
        for scale in SCALES:
            loss = -log_softmax(scale * unseen, axis=1)[np.arange(len(x)), labels].mean()
            best = min(best, (float(loss), ridge, scale))
    _, ridge, scale = best
    weight = (vectors @ (fitted / (values + ridge)[:, None]) / std[:, None]).T
    return weight, scale * (share - weight @ mean), scale
