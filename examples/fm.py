"""A factorization machine whose every parameter is a row in Rockbed; numpy does the rest.

S. Rendle, "Factorization Machines", ICDM 2010. For the features f of an example, a weight w_f and a vector v_f each,

    score = sum_f w_f + sum_{f<g} v_f . v_g = sum_f w_f + (|S|^2 - sum_f |v_f|^2) / 2,   S = sum_f v_f   (lemma 3.1)

and the chance of a yes is 1 / (1 + exp(-score)). With the logistic loss the gradient of the score is
e = chance - label, of w_f it is e, of v_f it is e (S - v_f). There is no bias: a feature that every example
has a value of (the month, say) does its work. So there is no dense part: trainers that share a store share the model.
"""

import numpy as np

from rockbed import PyEmbedding, PyInitializer, PyOptimizer, PyStorage
from rockbed.types import F32, I64

LINEAR, FACTORS, COUNTS = 1, 2, 3  # the groups


class FactorizationMachine:
    """Two groups of a store: rows of dim 1 (w) and of dim `factors` (v), both trained by Adagrad in the store.

    With `count`, a third group counts how often each key was pushed, in the same pushes: see `pushed`.
    """

    def __init__(self, storage: PyStorage, factors: int = 8, seed: int = 1, *, count: bool = False) -> None:
        self._storage = storage
        # Strong weight decay on the factors: three of four rows are seen a handful of times.
        self.linear = PyEmbedding(
            storage,
            PyOptimizer(name="adagrad", gamma=0.2, weight_decay=0.1),
            PyInitializer(name="zeros"),
            1,
            LINEAR,
            seed=seed,
        )
        self.factors = PyEmbedding(
            storage,
            PyOptimizer(name="adagrad", gamma=0.05, weight_decay=0.3),
            PyInitializer(name="random_uniform", min=-0.1, max=0.1),
            factors,
            FACTORS,
            seed=seed,
        )
        self._counts = _counting(storage) if count else None

    def step(self, keys: I64, labels: F32, request: tuple[str, int] | None = None) -> float:
        """Learn from one batch; the mean loss before the step.

        keys: int64[n, features], labels: float32[n]. The gradients of all groups go to the store in one call:
        they are applied all or not at all, and a request that was applied already is not applied again.
        A key that occurs many times in the batch has its gradients summed by the store.
        """
        flat = keys.reshape(-1)
        weights = self.linear.lookup(flat).reshape(keys.shape)
        vectors = self.factors.lookup(flat).reshape(*keys.shape, -1)
        scores, error = learn(weights, vectors, labels)
        gradients = [
            (self.linear, flat, np.repeat(error, keys.shape[1])[:, None]),
            (self.factors, flat, vectors.reshape(len(flat), -1)),
        ]
        if self._counts is not None:
            gradients.append((self._counts, flat, np.ones((len(flat), 1), np.float32)))
        self._storage.apply_gradients(gradients, request=request)
        return log_loss(scores, labels)

    def predict(self, keys: I64, chunk: int = 8192) -> F32:
        """Scores (log odds), float32[n], of int64[n, features]. Inserts nothing: an unseen value counts as zeros."""
        scores = np.empty(len(keys), np.float32)
        for start in range(0, len(keys), chunk):
            scores[start : start + chunk] = self._predict(keys[start : start + chunk])
        return scores

    def _predict(self, keys: I64) -> F32:
        weights = self.linear.lookup(keys.reshape(-1), train=False).reshape(keys.shape)
        vectors = self.factors.lookup(keys.reshape(-1), train=False).reshape(*keys.shape, -1)
        return scores_of(weights, vectors)[0]

    def pushed(self, keys: I64) -> I64:
        """How often each of these keys, int64[n], was pushed by models that count; exact up to 2^24 (float32)."""
        assert self._counts is not None, "this model does not count"
        return -self._counts.lookup(keys, train=False)[:, 0].astype(np.int64)


def _counting(storage: PyStorage) -> PyEmbedding:
    """Plain SGD with a rate of 1: a gradient of 1 takes 1 away, so a weight is minus the number of its gradients."""
    return PyEmbedding(storage, PyOptimizer(name="sgd", gamma=1.0), PyInitializer(name="zeros"), 1, COUNTS)


def learn(weights: F32, vectors: F32, labels: F32) -> tuple[F32, F32]:
    """The scores, and the gradient e of each, float32[n]. `vectors` becomes its own gradient, e (S - v).

    weights, vectors: as of `scores_of`. labels: float32[n].
    """
    scores, sums = scores_of(weights, vectors)
    error = (_sigmoid(scores) - labels).astype(np.float32)
    vectors -= sums[:, None, :]
    vectors *= -error[:, None, None]
    return scores, error


def scores_of(weights: F32, vectors: F32) -> tuple[F32, F32]:
    """Scores [n], and the sums S [n, factors]. weights: float32[n, features], or their sums, [n, 1].

    vectors: float32[n, features, factors].
    """
    sums = vectors.sum(axis=1)
    squares = np.einsum("nfk,nfk->n", vectors, vectors)
    return weights.sum(axis=1) + 0.5 * (np.einsum("nk,nk->n", sums, sums) - squares), sums


def _sigmoid(scores: F32) -> F32:
    # By way of tanh, which cannot overflow.
    half = np.float32(0.5)
    score: F32 = half * (1 + np.tanh(half * scores))
    return score


def log_loss(scores: F32, labels: F32) -> float:
    """The mean of log(1 + exp(-score)) over yes and of log(1 + exp(score)) over no."""
    return float(np.logaddexp(0, np.where(labels > 0, -scores, scores)).mean())


def auc(scores: F32, labels: F32) -> float:
    """The area under the ROC curve: the chance that a yes scores above a no, a tie counting half.

    From the ranks of the scores, equal ones sharing their mean rank (Mann and Whitney's U). NaN if one class is absent.
    """
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    positive = labels > 0
    yes, no = int(positive.sum()), int((~positive).sum())
    if yes == 0 or no == 0:
        return float("nan")
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))
