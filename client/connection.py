"""How a client talks to a server."""

from dataclasses import dataclass, field

from rockbed.client.tls import Tls, tls_problems
from rockbed.config import make_plain, number_problems, whole_problems
from rockbed.errors import InvalidConfig
from rockbed.wire import PRECISIONS

_LONG_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection(Tls):
    """Settings of a client: `PyStorage("grpc://host:7400", connection=Connection(deadline_s=5))`.

    deadline_s: seconds that one attempt of a call on rows may take.
    retry_s: for how long a call is tried again while the server cannot be reached, 0 = not at all. in_flight: requests
    that one large lookup has on the way at a time. precision: "float32", or "float16" or "bfloat16" for weights and
    gradients on the wire (rockbed.wire states the error; rows are float32 on the server whatever is chosen).
    shared_memory: whether large messages to a server on this machine lie in memory that both share, where the server
    can (Linux, one user, no container between, no TLS), rather than travel.
    client_id: 1 to 255 characters of ASCII that name the client in the server's log; several may have the same.
    token: what the server knows the client by.
    For grpcs://: tls_ca is a PEM file with the authorities that may vouch for the server, None = those of the system;
    tls_cert and tls_key are PEM files by which the client shows who it is, where the server asks for that; tls_name is
    the name that the server's certificate must have, None = that of the target.
    """

    deadline_s: float = 60.0
    retry_s: float = 60.0
    in_flight: int = 4
    precision: str = "float32"
    shared_memory: bool = True
    client_id: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        make_plain(self)
        problems = [
            *number_problems("deadline_s", self.deadline_s, above=0, most=_LONG_S),
            *number_problems("retry_s", self.retry_s, least=0, most=_LONG_S),
            *whole_problems("in_flight", self.in_flight, 1, 1024),
        ]
        if not isinstance(self.shared_memory, bool):
            problems.append(f"shared_memory is {self.shared_memory!r}, not True or False")
        if self.precision not in PRECISIONS:
            problems.append(f"precision is {self.precision!r}, not one of {', '.join(map(repr, PRECISIONS))}")
        if self.client_id is not None and not _is_client_id(self.client_id):
            problems.append(f"client_id is {self.client_id!r}, not 1 to 255 printable ASCII characters")
        if self.token is not None and not _is_header(self.token):
            problems.append("token is not printable ASCII")
        problems += tls_problems(self)
        if problems:
            raise InvalidConfig("connection: " + "; ".join(problems))


def _is_header(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isascii() and value.isprintable()


def _is_client_id(value: object) -> bool:
    return _is_header(value) and len(str(value)) <= 255
