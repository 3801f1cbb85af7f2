"""What a group needs of the store it lives in; the engine is that."""

from typing import Protocol

from rockbed.storage.hot import Budget, NeedSpace
from rockbed.storage.rows import RowFiles


class Host(Protocol):
    """The store, as a group sees it."""

    files: RowFiles
    budget: Budget
    store_ttl_s: float

    def now_ms(self) -> int:
        """Milliseconds since 1970; never goes backwards."""

    def last_lsn(self) -> int:
        """The LSN of the newest journal entry."""

    def make_space(self, need: NeedSpace) -> int:
        """Write back, or take memory from another group. Called without any group's lock. Returns what counts as
        tries."""
