"""`Feature`: what a fused lookup makes of one sparse feature."""

from dataclasses import KW_ONLY, dataclass

from rockbed.bags import Bags, setting_problems
from rockbed.client.embedding import PyEmbedding
from rockbed.client.ragged import Ragged, signed
from rockbed.config import make_plain
from rockbed.errors import InvalidConfig, WrongDtype


@dataclass(frozen=True, slots=True)
class Feature:
    """One sparse feature of a model: the rows that its keys have, and how those of a bag become one.

    name: its key in batches. embedding: where the rows are; several features may share one.
    combiner: "sum" is sum(w e), "mean" sum(w e) / sum(w), "sqrtn" sum(w e) / sqrt(sum(w^2)), w = 1 without weights;
        None makes it a sequence: the row of each key, not pooled, without weights.
    max_norm: a row of a larger L2 norm is scaled down to this before it is combined; its gradient passes through that.
    default_key: an int of int64 or uint64, never pruned, and not the padding_key of the embedding; an empty bag holds
        it, with weight 1. With None the result of an empty bag is zeros, and it has no gradient.
    prune_negative: int64 keys below 0 stand for nothing. uint64 keys are never negative.

    Pruned, before a bag counts as empty, are also the padding_key of the embedding and, unless the combiner is "sum",
    keys of weights <= 0. Raises InvalidConfig with every problem, WrongDtype.
    """

    name: str
    embedding: PyEmbedding
    combiner: str | None = "mean"
    _: KW_ONLY
    max_norm: float | None = None
    default_key: int | None = None
    prune_negative: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.embedding, PyEmbedding):
            what = type(self.embedding).__name__
            raise WrongDtype(f"feature {self.name!r}: embedding is a {what}, not a PyEmbedding")
        make_plain(self)
        problems = [] if _is_text(self.name) else ["its name must be a str that is not empty and that UTF-8 can encode"]
        problems += setting_problems(self.combiner, self.max_norm, self.default_key)
        padding = self.embedding.config.padding_bits
        if not problems and self.default_key is not None and signed(self.default_key) == padding:
            problems.append(f"default_key {self.default_key} is the padding_key of the embedding, which has no row")
        if not isinstance(self.prune_negative, bool):
            problems.append(f"prune_negative is {self.prune_negative!r}, not True or False")
        if problems:
            raise InvalidConfig(f"feature {self.name!r}: " + "; ".join(problems))

    def bags(self, ragged: Ragged) -> Bags:
        """The feature's share of a batch, as it is sent."""
        return Bags(
            name=self.name,
            group=self.embedding.group,
            keys=ragged.bits,
            offsets=ragged.offsets,
            weights=ragged.weights,
            combiner=self.combiner,
            max_norm=self.max_norm,
            default_key=None if self.default_key is None else signed(self.default_key),
            negative=ragged.unsigned or not self.prune_negative,
            generation=self.embedding.generation,
        )


def _is_text(name: object) -> bool:
    return isinstance(name, str) and name != "" and not any("\ud800" <= each <= "\udfff" for each in name)
