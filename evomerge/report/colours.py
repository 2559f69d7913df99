"""The colours of a report: one ramp for coefficients, below - neutral - above, for style sheet and pictures.

In: the anchors below. Out: steps of the ramp for the light and the dark page, each with a colour of text that can be
read on it. A ramp that only goes up is its upper half.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

STEPS = 20
"""Steps of colour on each side of the neutral one."""
ANCHORS = {
    "light": ["#7a3a05", "#c98a4b", "#f2f1ed", "#6fa3d4", "#0d447f"],
    "dark": ["#f3b26b", "#8a5a2b", "#2a2d32", "#2f6299", "#8cc4fb"],
}
MODELS = {"base": "#8b9098", "best_constant": "#b9732f", "winner": "#1f5fa8", "experts": "#3f8574"}
"""The colours of the models in pictures; the page has its own, for light and dark."""
INKS = ("#000000", "#ffffff")


def ramp(theme: str) -> list[tuple[str, str, str]]:
    """Return the steps of a theme, (class, colour, colour of text on it), from the lowest."""
    colors = [_at(ANCHORS[theme], (step + STEPS) / (2 * STEPS)) for step in range(-STEPS, STEPS + 1)]
    return [(name(step), color, _ink(color)) for step, color in zip(range(-STEPS, STEPS + 1), colors, strict=True)]


def name(step: int) -> str:
    """The class of a step of colour."""
    return f"m{-step}" if step < 0 else f"p{step}"


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """The contrast of two colours (WCAG 2), from 1 to 21; channels from 0 to 1."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def rgb(color: str) -> tuple[float, ...]:
    """The channels of a colour such as `#7a3a05`, from 0 to 1."""
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _at(anchors: Sequence[str], place: float) -> str:
    """Return the colour at a place from 0 to 1, linear between the anchors."""
    segments = list(pairwise(map(rgb, anchors)))
    i = min(int(place * len(segments)), len(segments) - 1)
    share = place * len(segments) - i
    return "#" + "".join(f"{round(255 * (a + share * (b - a))):02x}" for a, b in zip(*segments[i], strict=True))


def _ink(color: str) -> str:
    return max(INKS, key=lambda ink: contrast(rgb(ink), rgb(color)))


def _luminance(rgb: Sequence[float]) -> float:
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
