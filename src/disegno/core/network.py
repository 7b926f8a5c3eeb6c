"""Which addresses are the internet's, and which are of a network behind it."""

import ipaddress
import socket

# ranges of IPv6 whose addresses stand for IPv4 ones: mapped, NAT64, Teredo, 6to4
_TUNNELS = tuple(
    ipaddress.IPv6Network(text)
    for text in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
)


def literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that is written; None where it is a name, or nothing."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(address: str) -> bool:
    """Return whether an address is one of the internet's, and no other written in its form."""
    found = literal(address.partition("%")[0])
    if found is None:
        return False
    if isinstance(found, ipaddress.IPv6Address) and any(found in tunnel for tunnel in _TUNNELS):
        return False
    return found.is_global and not found.is_multicast


def addresses_of(host: str, port: int) -> list[str]:
    """Return the addresses that a name has, or stands for. Raises OSError, UnicodeError where there is none."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
