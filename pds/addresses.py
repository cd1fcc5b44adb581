"""Which hosts may be contacted. Host names come from other people's documents.

Only https, only public addresses, and no user name or password in the URL. The addresses of a name
are checked for every connection, after it was resolved (pds/client.py), so a name that resolves
differently the second time gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from pds.errors import RejectedRepo

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_URL = 2048
_PRINTABLE = re.compile(r"[!-~]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Azure serves instance metadata at this address, which is public otherwise.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
# NAT64 addresses embed the IPv4 address that is reached in the end.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def origin_of(url: str, *, insecure: bool = False) -> str:
    """The normal form `scheme://host[:port]` of a URL that has no other part.

    Raises RejectedRepo, also for a host that may not be contacted (see `checked_url`).
    """
    parts = urlsplit(checked_url(url, insecure=insecure))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _refused(url, "it has more than a scheme, a host and a port")

    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"

    if parts.port in (None, _DEFAULT_PORTS[parts.scheme]):
        return f"{parts.scheme}://{host}"
    return f"{parts.scheme}://{host}:{parts.port}"


def host_and_port(origin: str) -> tuple[str, int]:
    """The host name and the port of an origin."""
    parts = urlsplit(origin)
    return parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]


def checked_url(url: str, *, insecure: bool = False) -> str:
    """`url`, if it may be requested. `insecure` allows http. Raises RejectedRepo."""
    if not _PRINTABLE.fullmatch(url) or len(url) > _MAX_URL:
        raise _refused(url, "it is not a URL")

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused(url, "it is not a URL") from None

    if parts.scheme != "https" and not (insecure and parts.scheme == "http"):
        raise _refused(url, "it is not https")
    if "@" in parts.netloc:
        raise _refused(parts.hostname or "", "its URL has credentials")
    if not parts.hostname or port == 0:
        raise _refused(url, "it has no host")

    return url


def is_public(address: Address) -> bool:
    """Whether the address leads to the same host from anywhere on the internet."""
    embedded = _embedded_ipv4(address)
    if embedded is not None:
        return is_public(embedded)

    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not getattr(address, "is_site_local", False)
        and address not in _METADATA
    )


def check_addresses(host: str, addresses: list[str]) -> None:
    """Raises RejectedRepo unless every address of the host is public."""
    for text in addresses:
        without_zone = text.partition("%")[0]
        if not is_public(ipaddress.ip_address(without_zone)):
            raise _refused(host, f"it has the address {text}, which is not public")


def _embedded_ipv4(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside an IPv6 address of a transition mechanism."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)

    teredo_client = address.teredo[1] if address.teredo else None
    return address.ipv4_mapped or address.sixtofour or teredo_client


def _refused(what: str, reason: str) -> RejectedRepo:
    return RejectedRepo("unreachable", f"{what[:200]!r} is not contacted: {reason}")
