"""Long calls whose client goes: the work ends, and the audit log says why."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rockbed.server.admin import AdminService
from rockbed.server.service_progress import Abandoned, Progress, told


def test_an_answer_that_waits_for_work_ends_with_it_and_is_noted_as_given_up() -> None:
    gone: list[Callable[[], None]] = []
    go_on = threading.Event()
    context: Any = SimpleNamespace(add_callback=gone.append)

    def work(progress: Progress) -> None:
        progress(1, 3)
        assert go_on.wait(20)
        progress(2, 3)

    said: list[str] = []
    service: Any = SimpleNamespace(_say=lambda _, what, *values: said.append(what % values))
    answers = told(context, dict, work)
    assert next(answers) == {"rows_seen": 1, "rows_total": 3}
    gone[0]()
    go_on.set()
    with pytest.raises(Abandoned), AdminService._audited(service, context, "export %s", "x"):
        next(answers)
    assert said == ["export x", "export x: given up, the caller is gone"]
