"""Request numbers: applied once, in any order within the window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockbed.errors import RequestTooOld
from rockbed.requests import Request
from rockbed.server.clients import CONNECTION_KEPT_MS, Clients

WINDOW = 8


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 40)), max_size=60), st.integers(0, 60))
def test_a_request_is_known_when_it_was_recorded_and_never_otherwise(
    asked: list[tuple[str, int]], reload_at: int
) -> None:
    clients = Clients(WINDOW)
    applied: dict[str, set[int]] = {"a": set(), "b": set()}
    for i, (client, number) in enumerate(asked):
        if i == reload_at:
            stored, clients = clients.snapshot(0), Clients(WINDOW)
            clients.load(stored)
        newest = max(applied[client], default=0)
        if number <= newest - WINDOW:
            with pytest.raises(RequestTooOld, match=f"{newest}"):
                clients.applied(Request(client, number))
            continue
        assert clients.applied(Request(client, number)) == (number in applied[client])
        if number not in applied[client]:
            clients.record(Request(client, number), 0)
            applied[client].add(number)
        assert clients.last(client) == max(applied[client])


def test_a_client_that_never_asked_has_no_last_request() -> None:
    assert Clients(WINDOW).last("nobody") == 0


def test_a_connection_is_forgotten_a_while_after_its_last_push_and_a_named_client_never() -> None:
    clients = Clients(WINDOW)
    for name in ("auto-1", "auto-2", "trainer"):
        clients.record(Request(name, 1), 1_000)
    clients.record(Request("auto-2", 2), 5_000)
    reloaded = Clients(WINDOW)
    reloaded.load(clients.snapshot(1_000 + CONNECTION_KEPT_MS))
    assert reloaded.applied(Request("auto-1", 1))
    kept = reloaded.snapshot(5_000 + CONNECTION_KEPT_MS)
    assert sorted(kept) == ["auto-2", "trainer"]
    assert not reloaded.applied(Request("auto-1", 1))
    # one that pushes again after that long goes on
    reloaded.record(Request("auto-1", 2), 9_000_000_000)
    assert reloaded.applied(Request("auto-1", 2))
