"""Which addresses may be connected to, decided by IANA's registries instead of by Python's.

`ipaddress.is_global` answers differently from one Python version to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

__all__ = ["REGISTRY", "Address", "Network", "is_admitted", "is_public"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry, as
# of October 2025. Set up by RFC 6890, changed by RFC 8190 and the RFC of each block. The value is
# the column "Globally Reachable", where it says N/A our own decision; of blocks within each other
# the smallest counts.
_IANA: Final = (
    ("0.0.0.0/8", "this network", False),
    ("10.0.0.0/8", "private use", False),
    ("100.64.0.0/10", "shared address space", False),
    ("127.0.0.0/8", "loopback", False),
    ("169.254.0.0/16", "link local", False),
    ("172.16.0.0/12", "private use", False),
    ("192.0.0.0/24", "IETF protocol assignments", False),
    ("192.0.0.9/32", "Port Control Protocol anycast", True),
    ("192.0.0.10/32", "TURN anycast", True),
    ("192.0.2.0/24", "documentation", False),
    ("192.31.196.0/24", "AS112", True),
    ("192.52.193.0/24", "AMT", True),
    ("192.88.99.0/24", "6to4 relay anycast, deprecated", False),  # N/A
    ("192.168.0.0/16", "private use", False),
    ("192.175.48.0/24", "AS112 by direct delegation", True),
    ("198.18.0.0/15", "benchmarking", False),
    ("198.51.100.0/24", "documentation", False),
    ("203.0.113.0/24", "documentation", False),
    ("240.0.0.0/4", "reserved", False),
    ("::/128", "unspecified", False),
    ("::1/128", "loopback", False),
    ("::ffff:0:0/96", "IPv4-mapped", True),  # False; what goes out is the IPv4 address
    ("64:ff9b::/96", "NAT64", True),
    ("64:ff9b:1::/48", "NAT64 of local use", False),
    ("100::/64", "discard only", False),
    ("100:0:0:1::/64", "dummy prefix", False),
    ("2001::/23", "IETF protocol assignments", False),
    ("2001::/32", "Teredo", False),  # N/A
    ("2001:1::1/128", "Port Control Protocol anycast", True),
    ("2001:1::2/128", "TURN anycast", True),
    ("2001:1::3/128", "DNS-SD service registration anycast", True),
    ("2001:2::/48", "benchmarking", False),
    ("2001:3::/32", "AMT", True),
    ("2001:4:112::/48", "AS112", True),
    ("2001:10::/28", "ORCHID, deprecated", False),  # N/A
    ("2001:20::/28", "ORCHIDv2", True),
    ("2001:30::/28", "drone remote ids", True),
    ("2001:db8::/32", "documentation", False),
    ("2002::/16", "6to4", True),  # N/A
    ("2620:4f:8000::/48", "AS112 by direct delegation", True),
    ("3fff::/20", "documentation", False),
    ("5f00::/16", "segment routing SIDs", False),
    ("fc00::/7", "unique local", False),
    ("fe80::/10", "link local", False),
)
# Registered elsewhere: RFC 5771 and 4291 (multicast), RFC 3879 (site local), and in IANA's "IPv6
# address space" all that is not yet global unicast. The rest of IPv4 is public.
_OTHERS: Final = (
    ("0.0.0.0/0", "global unicast", True),
    ("224.0.0.0/4", "multicast", False),
    ("::/0", "not assigned", False),
    ("2000::/3", "global unicast", True),
    ("fec0::/10", "site local, deprecated", False),
    ("ff00::/8", "multicast", False),
)
REGISTRY: Final[tuple[tuple[Network, str, bool], ...]] = tuple(
    sorted(
        ((ip_network(block), name, public) for block, name, public in (*_IANA, *_OTHERS)),
        key=lambda row: row[0].prefixlen,
        reverse=True,
    )
)
"""Blocks with their names and whether they are public, the smallest first."""

_COMPATIBLE = IPv6Network("::/96")
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
# The interface identifier of ISATAP (RFC 5214), without the bits for "universal" and "group".
_ISATAP = 0x0000_5EFE
_ISATAP_MASK = 0xFCFF_FFFF


def is_public(address: Address) -> bool:
    """Whether the registries have it as globally reachable; says nothing of what it carries."""
    return next(public for block, _, public in REGISTRY if address in block)


def is_admitted(address: Address, networks: Iterable[Network]) -> bool:
    """Whether `address` is public, or in one of `networks`, and all that it carries is as well."""
    networks = tuple(networks)

    def is_named(one: Address) -> bool:
        return any(one in network for network in networks)

    # Without its zone, which names an interface of this machine.
    if isinstance(address, IPv6Address):
        address = IPv6Address(int(address))
    target = _target(address)
    if not is_named(target) and not (is_public(address) and is_public(target)):
        return False
    return all(is_public(one) or is_named(one) for one in _tunnel_ends(address))


def _target(address: Address) -> Address:
    """The IPv4 address that takes the packets of an IPv6 one, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _6TO4:
        return _low_ipv4(int(address) >> 80)
    is_wrapped = address in _MAPPED or address in _NAT64 or address in _COMPATIBLE
    # The first two of `::/96` are no IPv4 addresses: unspecified and loopback.
    return _low_ipv4(int(address)) if is_wrapped and int(address) > 1 else address


def _tunnel_ends(address: Address) -> list[IPv4Address]:
    """The IPv4 addresses within an IPv6 one of Teredo (its server, its client) or ISATAP."""
    if isinstance(address, IPv4Address):
        return []
    bits = int(address)
    ends = [_low_ipv4(bits)] if (bits >> 32) & _ISATAP_MASK == _ISATAP else []
    if address in _TEREDO:
        ends += [_low_ipv4(bits >> 64), _low_ipv4(~bits)]
    return ends


def _low_ipv4(bits: int) -> IPv4Address:
    return IPv4Address(bits & 0xFFFF_FFFF)
