"""Where task vectors lie, by what is free: simulated limits, and the sentences for the user."""

from __future__ import annotations

import pytest

from evomerge.common.errors import ConfigError
from evomerge.task_vectors.places import GIB, Free, Sizes, choose, choose_for

PARAMETERS = 7_600_000_000
CARD = Free(device=80 * GIB, host=256 * GIB)


def seven_billion(experts: int, bits: float) -> Sizes:
    """A model of 7.6 billion parameters in bfloat16."""
    model = 2 * PARAMETERS
    return Sizes(model, model, int(PARAMETERS * bits / 8 * experts), window=GIB)


@pytest.mark.parametrize(
    ("experts", "bits", "place", "said"),
    [
        (3, 16, "device", "70.8 GiB of 80.0 GiB"),
        (8, 16, "host", "they take 141.6 GiB and the device has 72.0 GiB; each candidate moves 127.4 GiB over the bus"),
        (8, 8.625, "host", "they take 89.4 GiB"),
        (8, 4.625, "device", "61.0 GiB of 80.0 GiB"),
        (16, 16, "disk", "each candidate reads 240.7 GiB from there"),
    ],
)
def test_one_card_of_80_gib(experts: int, bits: float, place: str, said: str) -> None:
    found = choose("auto", seven_billion(experts, bits), CARD)
    assert found.place == place
    assert said in found.said


def test_what_is_asked_for_is_done_or_refused() -> None:
    small, large = seven_billion(3, 16), seven_billion(8, 16)
    assert choose("disk", small, CARD).place == "disk"
    assert choose("host", small, CARD).place == "host"
    with pytest.raises(ConfigError, match=r"take 141\.6 GiB, and the device has 72\.0 GiB.*model\.store=int4, which"):
        choose("device", large, CARD, "model.store=int4")
    with pytest.raises(ConfigError, match=r"model\.place=host: .* write model\.place=disk"):
        choose("host", large, Free(80 * GIB, 100 * GIB))
    with pytest.raises(ConfigError, match=r"two windows .* take a larger device, or model\.device=cpu"):
        choose("auto", small, Free(8 * GIB, 256 * GIB))
    with pytest.raises(ConfigError, match=r"model\.place=moon is not known: write one of auto, device, host, disk"):
        choose("moon", small, CARD)


def test_on_a_cpu_they_are_mapped_or_held() -> None:
    sizes = seven_billion(3, 16)
    assert choose("auto", sizes, Free(None, 256 * GIB)).place == "disk"
    assert "what does not fit" in choose("auto", sizes, Free(None, 32 * GIB)).said
    assert choose("device", sizes, Free(None, 256 * GIB)).place == "host"
    with pytest.raises(ConfigError, match="this process may have 32"):
        choose("host", sizes, Free(None, 32 * GIB))


def test_of_several_devices_the_fullest_decides() -> None:
    """A model of 12 GiB in 48 parameters, eight experts, and half a GiB that is not merged; 8 GiB are on one device."""
    model = {f"layers.{place}": GIB // 4 for place in range(48)}
    devices = {name: f"cuda:{place // 32}" for place, name in enumerate(model)} | {"outside": "cuda:1"}
    base, vectors = dict(model), {name: 8 * size for name, size in model.items()}

    def said(asked: str, first: int, second: int) -> str:
        free = {"cuda:0": first * GIB, "cuda:1": second * GIB}
        return choose_for(asked, devices, model | {"outside": GIB // 2}, base, vectors, free, 256 * GIB).said

    assert said("auto", 90, 60) == (
        "task vectors beside the model on 2 devices, cuda:0 the fullest: 80.0 GiB of 90.0 GiB with model and base"
    )
    assert said("auto", 300, 40) == (
        "task vectors in the host's memory: with model and base they take 40.5 GiB on cuda:1, which has 36.0 GiB; each "
        "candidate moves 108.0 GiB over the bus"
    )
    with pytest.raises(ConfigError, match=r"take 80\.0 GiB on cuda:0, which has 72\.0 GiB for them: write model\.pl"):
        said("device", 80, 80)
    with pytest.raises(
        ConfigError, match=r"two windows .* on cuda:0, which has 9\.0 GiB .* more GPUs \(evaluator\.gpus\)"
    ):
        said("auto", 10, 300)
