"""Which addresses may be connected to, decided by IANA's registries instead of by Python's.

`ipaddress.is_global` answers differently from one Python version to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

__all__ = ["Address", "Network", "is_admitted"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry, as
# of October 2025. Set up by RFC 6890, changed by RFC 8190 and the RFC of each block. The column
# "Globally Reachable" decides whether a block is public, and we decide where that says N/A: for
# 6to4, its relays, Teredo and the first ORCHID. Registered elsewhere: multicast (RFC 5771, 4291),
# site local (RFC 3879), and IANA's "IPv6 address space" for what is not yet global unicast.
_NOT_PUBLIC: Final = {
    "this network, unspecified": "0.0.0.0/8 ::/128",
    "private use": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16",
    "unique local": "fc00::/7",
    "shared address space": "100.64.0.0/10",
    "loopback": "127.0.0.0/8 ::1/128",
    "link local": "169.254.0.0/16 fe80::/10",
    "site local, deprecated": "fec0::/10",
    "IETF protocol assignments": "192.0.0.0/24 2001::/23",
    "documentation": "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20",
    "6to4 relay anycast, deprecated": "192.88.99.0/24",
    "benchmarking": "198.18.0.0/15 2001:2::/48",
    "multicast": "224.0.0.0/4 ff00::/8",
    "reserved": "240.0.0.0/4",
    "NAT64 of local use": "64:ff9b:1::/48",
    "discard only, dummy prefix": "100::/64 100:0:0:1::/64",
    "Teredo": "2001::/32",
    "ORCHID, deprecated": "2001:10::/28",
    "segment routing SIDs": "5f00::/16",
    "not assigned": "::/0",
    # In no registry: a public address that leads each machine in Azure to its host
    # (https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16).
    "Azure's wire server": "168.63.129.16/32",
}
_PUBLIC: Final = {
    "global unicast": "0.0.0.0/0 2000::/3",
    "Port Control Protocol anycast": "192.0.0.9/32 2001:1::1/128",
    "TURN anycast": "192.0.0.10/32 2001:1::2/128",
    "DNS-SD service registration anycast": "2001:1::3/128",
    "AS112": "192.31.196.0/24 2001:4:112::/48",
    "AS112 by direct delegation": "192.175.48.0/24 2620:4f:8000::/48",
    "AMT": "192.52.193.0/24 2001:3::/32",
    "ORCHIDv2": "2001:20::/28",
    "drone remote ids": "2001:30::/28",
    # The registry says False; the packets go to the IPv4 address.
    "IPv4-mapped": "::ffff:0:0/96",
    "NAT64": "64:ff9b::/96",
    "6to4": "2002::/16",
}
# The smallest block that holds an address decides.
_BLOCKS: Final[list[tuple[Network, bool]]] = sorted(
    (
        (ip_network(block), registry is _PUBLIC)
        for registry in (_PUBLIC, _NOT_PUBLIC)
        for blocks in registry.values()
        for block in blocks.split()
    ),
    key=lambda row: row[0].prefixlen,
    reverse=True,
)

_COMPATIBLE = IPv6Network("::/96")
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
# The interface identifier of ISATAP (RFC 5214), without the bits for "universal" and "group".
_ISATAP = 0x0000_5EFE
_ISATAP_MASK = 0xFCFF_FFFF


def is_admitted(address: Address, networks: Iterable[Network]) -> bool:
    """Return whether `address` and those embedded in it are public or in one of `networks`.

    An IPv6 address may embed the IPv4 address that its packets go to (IPv4-mapped, NAT64, 6to4), or
    the ends of a tunnel (Teredo's server and client, ISATAP).
    """
    networks = tuple(networks)
    target: Address = address
    ends: list[IPv4Address] = []
    if isinstance(address, IPv6Address):
        bits = int(address)
        # Without its zone, which names an interface of this machine.
        target = address = IPv6Address(bits)
        if address in _6TO4:
            target = _low_ipv4(bits >> 80)
        # The first two of `::/96` are not IPv4 addresses: unspecified and loopback.
        elif bits > 1 and any(address in block for block in (_MAPPED, _NAT64, _COMPATIBLE)):
            target = _low_ipv4(bits)
        if (bits >> 32) & _ISATAP_MASK == _ISATAP:
            ends = [_low_ipv4(bits)]
        if address in _TEREDO:
            ends += [_low_ipv4(bits >> 64), _low_ipv4(~bits)]

    def is_allowed(one: Address) -> bool:
        return any(one in network for network in networks)

    if not is_allowed(target) and not (_is_public(address) and _is_public(target)):
        return False
    return all(_is_public(end) or is_allowed(end) for end in ends)


def _is_public(address: Address) -> bool:
    return next(public for block, public in _BLOCKS if address in block)


def _low_ipv4(bits: int) -> IPv4Address:
    return IPv4Address(bits & 0xFFFF_FFFF)
