"""Every error this package raises, in one tree.

    GatewaySidecarError
    ├── ConfigError             the configuration file: every problem at once, with lines
    ├── KindError               another package's kind of router, engine or source cannot be used
    ├── RouterError
    │   ├── RouterUnavailable   no answer, or an answer that makes no sense; says nothing about workers
    │   ├── RouterRefused       the router answered, and the answer is no
    │   └── WorkerExists        the router has a worker at that URL already
    ├── NginxError              nginx cannot be found, configured or started, or an address cannot be claimed
    │   └── AddressRefused      this machine needs that address itself
    ├── NotInForce              the configuration was taken in, and nginx does not serve all of it
    ├── FrontendError           a key file or a certificate cannot be used: a line for each mistake
    ├── AcmeError               no certificate could be had of the ACME server
    ├── ProcessError            a child process cannot be started
    ├── StateError              a saved state file, or what stands in its place, cannot be read or written
    │   └── StateInDoubt        it may have been written, or not
    ├── StoreError              the store that gateways share: no usable answer
    │   ├── StoreAway           no answer in time
    │   │   └── StoreInDoubt    no answer to a write, which it may have done
    │   ├── StoreDenied         it refused us: password, rights, certificate
    │   ├── StoreFull           it takes no more
    │   ├── StoreRefused        what it says cannot be believed
    │   ├── StoreConflict       a key is not as it was seen
    │   └── LeaseLost           a lease has ended
    ├── MetricsError            somebody's metrics cannot be read
    ├── LeaveError              the gateway cannot leave, or cannot be taken back any more
    ├── InstallError            `install` cannot put a file, a directory or the user in place
    └── AdminError              the daemon's admin API cannot be reached, or gives no usable answer
        ├── DaemonAway          no process listens there
        ├── DaemonUnready       it runs, and does not listen yet, or any more
        └── AdminRefused        the daemon refused the request

Adapters translate foreign errors into these once, at their edge.
"""

from __future__ import annotations


class GatewaySidecarError(Exception):
    """The root of the tree."""


class ConfigError(GatewaySidecarError):
    """The configuration cannot be used.

    `problems` holds one complete, printable line for each mistake.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class KindError(GatewaySidecarError):
    """A kind that another package brings cannot be imported, or its name is taken."""


class RouterError(GatewaySidecarError):
    """Something between us and the router's API."""


class RouterUnavailable(RouterError):
    """The router did not answer, or not in a form that can be trusted."""


class RouterRefused(RouterError):
    """The router answered with an error of its own."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class WorkerExists(RouterError):
    """The router already has a worker at this URL; `worker_id` names it where the router said so."""

    def __init__(self, url: str, worker_id: str | None) -> None:
        super().__init__(f"the router already has a worker at {url}")
        self.worker_id = worker_id


class NginxError(GatewaySidecarError):
    """nginx cannot be found, configured or started, or an address cannot be claimed."""


class AddressRefused(NginxError):
    """A replica's address that this machine must not make its own; the text says why, and what to do."""


class NotInForce(GatewaySidecarError):
    """The configuration was taken in, and something of it is not in force; it is tried again.

    `problems` holds a printable line for each thing, `changes` what was taken in.
    """

    def __init__(self, problems: list[str], changes: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.changes = changes


class FrontendError(GatewaySidecarError):
    """A frontend's keys or its certificate cannot be used. `problems` holds a printable line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class AcmeError(GatewaySidecarError):
    """No certificate could be had of the ACME server. The text is printable; `asked_s` is how long the server wants to
    be left alone, 0 if it did not say.
    """

    def __init__(self, message: str, *, asked_s: float = 0.0) -> None:
        super().__init__(message)
        self.asked_s = asked_s


class ProcessError(GatewaySidecarError):
    """A child process cannot be started."""


class StateError(GatewaySidecarError):
    """A saved state file cannot be read or written."""


class StateInDoubt(StateError):
    """It may have been written, or not."""


class StoreError(GatewaySidecarError):
    """The store gave no usable answer, or none that can be believed. `kind` is how metrics call it."""

    kind = "error"


class StoreAway(StoreError):
    """No member of the store answered in time."""

    kind = "away"


class StoreInDoubt(StoreAway):
    """A write was not answered: it may have been done, or not."""


class StoreDenied(StoreError):
    """The store refused us, or we refused its certificate."""

    kind = "denied"


class StoreFull(StoreError):
    """The store has no room; it can still be read."""

    kind = "full"


class StoreRefused(StoreError):
    """What the store says cannot be believed: it is empty, older or another one."""

    kind = "refused"


class StoreTooNew(StoreRefused):
    """Only a later version of this program can read what the store holds."""


class StoreConflict(StoreError):
    """A key is not as it was seen: somebody else has written it."""

    kind = "conflict"


class LeaseLost(StoreError):
    """A lease has ended."""

    kind = "lease"


class MetricsError(GatewaySidecarError):
    """The metrics of a replica or a router cannot be read. `absent` says that it has none to read."""

    def __init__(self, message: str, *, absent: bool = False) -> None:
        super().__init__(message)
        self.absent = absent


class LeaveError(GatewaySidecarError):
    """The gateway cannot leave, or cannot be taken back any more."""


class InstallError(GatewaySidecarError):
    """`install` or `uninstall` cannot do its work."""


class AdminError(GatewaySidecarError):
    """The daemon's admin API cannot be reached, or gives no usable answer."""


class DaemonUnready(AdminError):
    """A daemon runs, and does not listen: it starts, or ends."""


class DaemonAway(AdminError):
    """No process listens at the daemon's socket."""


class AdminRefused(AdminError):
    """The daemon refused the request, with this HTTP status.

    `problems` holds a printable line for each mistake; `changes` what a reload took in all the same, None for others.
    """

    def __init__(self, status: int, message: str, problems: list[str], changes: list[str] | None) -> None:
        super().__init__(message)
        self.status = status
        self.problems = problems
        self.changes = changes
