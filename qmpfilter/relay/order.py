# SPDX-License-Identifier: GPL-2.0-or-later
"""What a worker is told to do, once: frozen, so that no later change of the configuration reaches a migration."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, get_type_hints

from qmpfilter.errors import BugError, PolicyError
from qmpfilter.filter.policy import Enforcement, Mode, Policy
from qmpfilter.relay.limits import Waits
from qmpfilter.relay.pair import Encryption, Pairing
from qmpfilter.verdict.facts import HostFacts

__all__ = ["FORMAT", "Order"]

FORMAT: Final = 1
"""A daemon and the workers that it starts may be of different versions while a package is upgraded."""


@dataclass(frozen=True, slots=True)
class Order:
    """One migration.

    :param session: its name
    :param listen: where its source comes, for the report
    :param destination: an address as :func:`~qmpfilter.relay.address.parse_destination` takes it; where the source
        is told to migrate over QMP, also ``qmp:`` and the path of the destination's QMP socket
    :param qmp: the source's QMP socket, empty if it is not to be spoken with
    :param storage: where the guest's disks go, which come to a port of the same number; empty if they do not
    :param asked_by: who wanted the migration, for the report
    :param pairing: how other filters are met, where an address is one
    :param read_vmcb12: VMCB12 is read over QMP where the stream leaves something to be guessed
    :param name: of the domain, empty where it is not known
    :param uuid: of the domain, empty where it is not known
    :param records: a directory that is made for the svm2 records of a guest that arrived, None to keep none
    :param policy: what is done to the stream
    :param waits: how long to wait for what
    :param report: the file that tells how it ended
    :param journal: a file that tells how far it is, one JSON object a line; on a file system in memory
    :param audit: the directory of the audit log, None without one
    :param audit_required: what cannot be recorded is not let go
    :param kill_switch: while this file exists, everything passes as it is
    """

    session: str
    listen: str
    destination: str
    policy: Policy
    waits: Waits
    report: Path
    journal: Path
    kill_switch: Path
    asked_by: str = ""
    audit: Path | None = None
    audit_required: bool = False
    qmp: str = ""
    storage: str = ""
    read_vmcb12: bool = True
    name: str = ""
    uuid: str = ""
    records: Path | None = None
    pairing: Pairing = field(default_factory=Pairing)

    def to_json(self) -> str:
        """One line, without its end."""
        whole: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        whole = {name: str(value) if isinstance(value, Path) else value for name, value in whole.items()}
        whole["policy"] = {one.name: _plain(getattr(self.policy, one.name)) for one in fields(Policy)}
        whole["waits"] = asdict(self.waits)
        whole["pairing"] = {**asdict(self.pairing), "pki": str(self.pairing.pki)}
        return json.dumps({"format": FORMAT, **whole})

    @classmethod
    def from_json(cls, text: str | bytes) -> Order:
        """What :meth:`to_json` wrote.

        :raises BugError: the text is no order, or one of another version
        :raises PolicyError: the policy contradicts itself
        """
        try:
            whole = json.loads(text)
            if whole.pop("format") != FORMAT:
                raise BugError("an order of another version of qmpfilter: restart the daemon")
            types = get_type_hints(Policy)
            policy = Policy(**{name: _READ[types[name]](value) for name, value in whole.pop("policy").items()})
            waits = Waits(**whole.pop("waits"))
            pairing = whole.pop("pairing")
            pairing = Pairing(Encryption(pairing.pop("encryption")), Path(pairing.pop("pki")), **pairing)
            for one in _PATHS:
                whole[one] = Path(whole[one])
            for one in _MAYBE_PATHS:
                whole[one] = None if whole[one] is None else Path(whole[one])
            return cls(policy=policy, waits=waits, pairing=pairing, **whole)
        except PolicyError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BugError(f"no order: {type(error).__name__}: {error}") from error


_PATHS: Final = tuple(one.name for one in fields(Order) if one.type == Path.__name__)
_MAYBE_PATHS: Final = tuple(one.name for one in fields(Order) if one.type == f"{Path.__name__} | None")


def _plain(value: Any) -> Any:
    if isinstance(value, HostFacts):
        return value.to_json()
    return sorted(value) if isinstance(value, frozenset) else value


_READ: Final[Mapping[Any, Callable[[Any], Any]]] = {
    Mode: Mode,
    Enforcement: Enforcement,
    HostFacts: lambda value: HostFacts.from_json(json.dumps(value)),
    frozenset[str]: frozenset,
    bool: bool,
}
"""How the types of a policy's fields are read."""
