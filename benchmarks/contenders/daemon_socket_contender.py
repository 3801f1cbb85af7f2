"""Rockbed, served, with nothing but the socket between client and server: as they were on two machines."""

from benchmarks.contenders.base import Contender
from benchmarks.contenders.daemon_contender import Daemon
from rockbed import Connection


class DaemonSocket(Daemon):
    connection = Connection(shared_memory=False)


def make() -> Contender:
    return DaemonSocket()
