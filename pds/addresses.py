"""Which hosts may be talked to. They come from strangers' documents.

Only https, only to public addresses, and never with a user name or a password in the URL. Names
are checked after they are resolved, for every connection (pds/client.py), so a name that resolves
differently the second time gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from pds.errors import RejectedRepo

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PRINTABLE = re.compile(r"[!-~]+")
# Azure answers requests for metadata at an address that is public otherwise.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
# Networks whose addresses hold an IPv4 address that is reached in the end: NAT64 and 6to4.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def origin_of(url: str, *, insecure: bool = False) -> str:
    """`scheme://host[:port]` in its normal form; `url` may have nothing else. Raises RejectedRepo."""
    parts = urlsplit(checked_url(url, insecure=insecure))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _refused(url, "it has more than a scheme, a host and a port")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (
        f":{parts.port}" if parts.port not in (None, default) else ""
    )


def checked_url(url: str, *, insecure: bool = False) -> str:
    """`url` if it may be asked. `insecure` allows http. Raises RejectedRepo."""
    if not _PRINTABLE.fullmatch(url) or len(url) > 2048:
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
    """Whether anyone on the internet would reach the same host under this address."""
    inner = _inner(address)
    if inner is not None:
        return is_public(inner)
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
        if not is_public(ipaddress.ip_address(text.partition("%")[0])):
            raise _refused(host, f"it has the address {text}, which is not public")


def _inner(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return (
        address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    )


def _refused(what: str, reason: str) -> RejectedRepo:
    return RejectedRepo("unreachable", f"{what[:200]!r} is not asked: {reason}")
