"""The flights again, with one call each way: a step looks all of its rows up at once, and pushes at once.

`python -m examples.fused` trains the model of examples/fm.py twice, as that file has it and by a FusedEmbedding, and
compares. `--served` trains through servers, where a call costs most. Every figure printed is measured in that run.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.flights_data import Split, read_flights, split, synthetic
from examples.fm import FactorizationMachine, auc, learn, log_loss, scores_of
from examples.processes import Server
from examples.trainer import Plan, add_plan_options, plan_of, train
from rockbed import Feature, FusedEmbedding, PyStorage, Ragged
from rockbed.types import F32, I64

# Sums of a few floats in another order: rounding is all that may differ. On all flights the five digits printed do not.
AUC_TOLERANCE = 0.001


class FusedMachine(FactorizationMachine):
    """The same rows and the same formulas. The store sums the weights w_f of an example, whose gradients are all e;
    the vectors v_f, whose squares the score needs one by one, are a sequence."""

    def __init__(self, storage: PyStorage, factors: int = 8, seed: int = 1) -> None:
        super().__init__(storage, factors, seed)
        self._fused = FusedEmbedding([Feature("weights", self.linear, "sum"), Feature("vectors", self.factors, None)])

    def step(self, keys: I64, labels: F32, request: tuple[str, int] | None = None) -> float:
        """As FactorizationMachine.step, in one lookup and one push; what was looked up is kept for the push, so that
        the keys travel once."""
        out = self._fused.lookup(_batch(keys))
        vectors = out["vectors"].reshape(*keys.shape, -1)
        scores, error = learn(out["weights"], vectors, labels)
        self._fused.apply_gradients(out, error[:, None], {"vectors": out["vectors"]}, request=request)
        return log_loss(scores, labels)

    def _predict(self, keys: I64) -> F32:
        out = self._fused.lookup(_batch(keys), train=False)
        return scores_of(out["weights"], out["vectors"].reshape(*keys.shape, -1))[0]


def _batch(keys: I64) -> dict[str, Ragged]:
    """A bag for each example. keys: int64[n, features]."""
    bags = Ragged(keys.reshape(-1), np.arange(0, keys.size + 1, keys.shape[1]))
    return {"weights": bags, "vectors": bags}


@dataclass(frozen=True)
class Trained:
    """A training: the AUC on what was held out, the seconds that all steps but the first took, with numpy's part, and
    the keys looked up and pushed in each of them."""

    auc: float
    seconds: float
    keys_s: float


def trained(machine: type[FusedMachine | FactorizationMachine], target: str, data: Split, plan: Plan) -> Trained:
    """Train a model in a store of its own, from the first step to the last."""
    with PyStorage(target) as storage:
        model = machine(storage, plan.factors, plan.seed)
        steps = train(storage, model, data, plan)
        next(steps)  # before the clock runs: the first call of each kernel compiles it, or loads it from the cache
        started = time.perf_counter()
        examples = sum(step.examples for step in steps)
        seconds = time.perf_counter() - started
        rate = 2 * examples * data.train_keys.shape[1] / seconds
        return Trained(auc(model.predict(data.test_keys), data.test_labels), seconds, rate)


def compare(directory: Path, data: Split, plan: Plan, *, served: bool) -> tuple[Trained, Trained]:
    """Train both ways, the unfused one first, in stores below the directory."""
    results = []
    for machine in (FactorizationMachine, FusedMachine):
        store = directory / machine.__name__
        with ExitStack() as ending:
            target = str(store)
            if served:
                target = ending.enter_context(Server(store, directory / "server.log")).target
            results.append(trained(machine, target, data, plan))
    return results[0], results[1]


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 when the two ways did not end alike, 2 when there is nothing to learn from."""
    parser = argparse.ArgumentParser(prog="python -m examples.fused", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--served", action="store_true", help="through a server, not in this process")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--flights", type=int, metavar="ROWS", help="only so many flights, taken evenly over the year")
    source.add_argument("--synthetic", type=int, metavar="ROWS", help="so many made-up examples instead")
    add_plan_options(parser)
    options = parser.parse_args(arguments)
    plan = plan_of(options)
    try:
        examples = synthetic(options.synthetic) if options.synthetic else read_flights(options.flights)
    except ModuleNotFoundError as problem:
        print(problem)
        return 2
    data = split(examples, plan.seed)
    with tempfile.TemporaryDirectory(prefix="rockbed-fused-") as directory:
        unfused, fused = compare(Path(directory), data, plan, served=options.served)
    for name, result in (("unfused", unfused), ("fused", fused)):
        rate = f"{result.keys_s / 1e6:.2f} M keys/s looked up and as many pushed"
        print(f"{name:8} held-out AUC {result.auc:.5f}; {result.seconds:.1f} s, {rate}, with numpy's part")
    print(f"The fused training took {fused.seconds / unfused.seconds:.2f} times as long.")
    return 0 if abs(fused.auc - unfused.auc) <= AUC_TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
