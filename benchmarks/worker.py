"""One contender in a process of its own: `python -m benchmarks.worker NAME` takes commands as lines of JSON.

{"do": "open", "settings": {...}, "sizes": {...}}, {"do": WORKLOAD, "round": 0}, {"do": "close"}; a line answers each.
"""

import gc
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contenders import make
from benchmarks.contenders.base import Settings
from benchmarks.proc import resident
from benchmarks.workloads import WORKLOADS, Bench, Sizes


def settings_of(sent: dict[str, Any]) -> Settings:
    return Settings(**{**sent, "directory": Path(sent["directory"])})


def main() -> None:
    # Libraries print (damo does, from C++): only the answers may go to the real standard output.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contender = make(sys.argv[1])
    bench: Bench | None = None
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any]
        try:
            if command["do"] == "open":
                bench = Bench(contender, settings_of(command["settings"]), Sizes(**command["sizes"]))
                start = time.perf_counter()
                contender.open(bench.settings)
                answer = {"keys": 0, "seconds": [time.perf_counter() - start], "more": {}}
                bench.resident_at_open = resident()["now"]
            elif command["do"] == "close":
                start = time.perf_counter()
                contender.close()
                answer = {"keys": 0, "seconds": [time.perf_counter() - start], "more": {}}
            else:
                assert bench is not None, "open comes first"
                gc.collect()
                answer = asdict(WORKLOADS[command["do"]](bench, command["round"]))
        except Exception as problem:
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
