"""What becomes of a storage when something that holds it is copied or pickled."""

from typing import Any

from rockbed.errors import WrongDtype


class SharedByCopies:
    """Base of what has files, threads or a connection. `copy.deepcopy` of what holds it (a torch module, say) holds the
    same one, and so has the same rows."""

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        raise WrongDtype(
            f"{self!r} cannot be pickled: it is open in this process. Open it in the process that uses it, and save a "
            "torch module by its state_dict(); the rows are in the store (storage.checkpoint)"
        )
