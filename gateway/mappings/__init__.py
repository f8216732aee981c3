"""The mapping core: which external port leads to which internal host, until when (RFC 6886 §3, RFC 6887 §11).

Pure: it imports no asyncio, socket, clock, random source or logging, and knows no wire format. NAT-PMP, PCP and UPnP
all ask one `MappingTable`, so that what one of them maps the others see, keep and respect.
"""

from .effects import (
    AddressChanged,
    Answer,
    Change,
    Changed,
    Effect,
    EpochReset,
    Install,
    Moved,
    Remove,
    Restrict,
    Verdict,
)
from .ports import ExternalPorts
from .table import INSTALL_TRIES, WAITING_LIMIT, MappingTable
from .values import (
    BARRED_PORTS,
    FILTER_LIMIT,
    HIGHEST_PORT,
    Filter,
    FilterChange,
    Key,
    Limits,
    Mapping,
    Origin,
    Transport,
)

__all__ = [
    "BARRED_PORTS",
    "FILTER_LIMIT",
    "HIGHEST_PORT",
    "INSTALL_TRIES",
    "WAITING_LIMIT",
    "AddressChanged",
    "Answer",
    "Change",
    "Changed",
    "Effect",
    "EpochReset",
    "ExternalPorts",
    "Filter",
    "FilterChange",
    "Install",
    "Key",
    "Limits",
    "Mapping",
    "MappingTable",
    "Moved",
    "Origin",
    "Remove",
    "Restrict",
    "Transport",
    "Verdict",
]
