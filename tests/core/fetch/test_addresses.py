"""The public addresses: every block of IANA's registries, and addresses that carry others."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from embedstream_core.fetch.addresses import is_admitted


def words(text: str) -> list[str]:
    return text.split()


# Copied from the registries, not from the code: IANA's column "Globally Reachable".
REFUSED = words("""
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/29
    192.0.0.8/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16
    198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
    ::/128 ::1/128 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/32 2001:2::/48 2001:10::/28
    2001:db8::/32 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
""")
ADMITTED = words("""
    192.0.0.9/32 192.0.0.10/32 192.31.196.0/24 192.52.193.0/24 192.175.48.0/24
    2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:3::/32 2001:4:112::/48 2001:20::/28
    2001:30::/28 2620:4f:8000::/48
""")
# The addresses on both sides of these blocks, which are public themselves.
PUBLIC_NEIGHBOURS = words("""
    1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
    168.63.129.15 168.63.129.17
    169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.1.255
    192.0.3.0 192.31.195.255 192.31.197.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0
    198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255
    8.8.8.8 2000:: 2001:200:: 2001:db7:ffff:ffff:ffff:ffff:ffff:ffff 2001:db9:: 2003::
    2606:4700:4700::1111 3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff 3fff:1000::
""")
REFUSED_NEIGHBOURS = words("""
    168.63.129.16
    192.0.0.11 192.0.0.192 192.0.0.255 2001:1:: 2001:1::4 2001:4:111:ffff:: 2001:4:113:: 2001:40::
    2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff 100:0:0:2:: ::2 64:ff9b:0:0:0:1:: 64:ff9b:2:: 200:: 400::
    1fff:: 4000:: 5eff:: 5f01:: 8000:: fbff:: fe00:: fe7f::
""")


def ends(block: str) -> list[str]:
    network = ip_network(block)
    return [str(network.network_address), str(network.broadcast_address)]


@pytest.mark.parametrize("address", [end for block in REFUSED for end in ends(block)])
def test_the_first_and_the_last_of_a_special_block_are_refused(address: str) -> None:
    assert not is_admitted(ip_address(address), ())


@pytest.mark.parametrize("address", [end for block in ADMITTED for end in ends(block)])
def test_blocks_that_are_globally_reachable_are_public(address: str) -> None:
    assert is_admitted(ip_address(address), ())


@pytest.mark.parametrize("address", PUBLIC_NEIGHBOURS)
def test_the_neighbours_of_special_blocks_are_public(address: str) -> None:
    assert is_admitted(ip_address(address), ())


@pytest.mark.parametrize("address", REFUSED_NEIGHBOURS)
def test_unassigned_addresses_are_refused(address: str) -> None:
    assert not is_admitted(ip_address(address), ())


def carriers(ipv4: str) -> dict[str, IPv6Address]:
    """IPv6 addresses that carry an IPv4 one, by how they do; their own part is public."""
    bits = int(IPv4Address(ipv4))
    isatap = int(IPv6Address("2606:4700::"))
    server = int(IPv4Address("8.8.8.8"))
    return {
        "mapped": IPv6Address(0xFFFF << 32 | bits),
        "nat64": IPv6Address(int(IPv6Address("64:ff9b::")) | bits),
        "6to4": IPv6Address(0x2002 << 112 | bits << 80 | 1),
        "isatap": IPv6Address(isatap | 0x5EFE << 32 | bits),
        "isatap-universal": IPv6Address(isatap | 0x2005EFE << 32 | bits),
        "compatible": IPv6Address(bits),
        "teredo-client": IPv6Address(0x20010000 << 96 | server << 64 | (~bits & 0xFFFFFFFF)),
        "teredo-server": IPv6Address(0x20010000 << 96 | bits << 64 | (~server & 0xFFFFFFFF)),
    }


KINDS = sorted(carriers("8.8.8.8"))
NEVER_PUBLIC = {"compatible", "teredo-client", "teredo-server"}
PRIVATE = ["10.1.2.3", "127.0.0.1", "169.254.169.254", "192.0.0.192", "192.88.99.1", "240.0.0.1"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ipv4", PRIVATE)
def test_a_private_address_is_refused_in_every_carrier(kind: str, ipv4: str) -> None:
    assert not is_admitted(carriers(ipv4)[kind], ())


@pytest.mark.parametrize("kind", KINDS)
def test_the_carrier_of_a_public_address_is_checked_by_itself(kind: str) -> None:
    assert is_admitted(carriers("8.8.8.8")[kind], ()) == (kind not in NEVER_PUBLIC)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "teredo" not in kind])
def test_a_named_network_is_admitted_in_every_carrier(kind: str) -> None:
    networks = [ip_network("10.1.0.0/16")]
    assert is_admitted(carriers("10.1.2.3")[kind], networks)
    assert not is_admitted(carriers("10.2.2.3")[kind], networks)


def test_both_ends_of_a_tunnel_are_checked() -> None:
    teredo = [ip_network("2001::/32")]
    addresses = carriers("10.1.2.3")
    assert is_admitted(carriers("9.9.9.9")["teredo-client"], teredo)
    assert not is_admitted(addresses["teredo-client"], teredo)
    assert not is_admitted(addresses["teredo-server"], teredo)
    assert is_admitted(addresses["teredo-client"], [*teredo, ip_network("10.0.0.0/8")])


@pytest.mark.parametrize(
    ("address", "network"),
    [("::1", "::1/128"), ("fd00::1", "fd00::/8"), ("fe80::1%eth0", "fe80::/10")],
)
def test_private_ipv6_is_admitted_where_it_is_named(address: str, network: str) -> None:
    assert not is_admitted(ip_address(address), [ip_network("10.0.0.0/8")])
    assert is_admitted(ip_address(address), [ip_network(network)])


@pytest.mark.parametrize("address", ["fe80::1%eth0", "::1%1", "::ffff:10.0.0.1%eth0", "ff02::1%2"])
def test_a_zone_changes_nothing(address: str) -> None:
    assert not is_admitted(ip_address(address), ())
    assert is_admitted(ip_address("2606:4700::1111%eth0"), ())


def test_all_of_ipv6_does_not_name_ipv4() -> None:
    assert not is_admitted(ip_address("::ffff:127.0.0.1"), [ip_network("::/0")])
