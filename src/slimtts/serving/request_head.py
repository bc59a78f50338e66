"""What a request's first lines must be before anything is done for it: bounded, unambiguous, and for this machine.

Starlette's TrustedHostMiddleware reads a Host header as strictly, but compares it with a list of names, and all of
127.0.0.0/8 is this machine; and it answers 400 as plain text, where clients of this server expect 403 and JSON.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.types import Scope

from slimtts.serving.refusals import Refusal

MOST_HEADERS = 100
LONGEST_TARGET_BYTES = 2_048
LARGEST_HEAD_BYTES = 16_384
# RFC 9110: uri-host [ ":" port ], without a login; names and IPv4 addresses, or an IPv6 address in brackets.
HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253}))(?::(?P<port>[0-9]{1,5}))?")
HIGHEST_PORT = 65_535


def is_loopback(host: str) -> bool:
    """Is this name or address this machine's own?"""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str | None:
    """The name or address of a Host header, without port and brackets; None when it is none."""
    parts = HOST.fullmatch(header)
    if parts is None or int(parts["port"] or 0) > HIGHEST_PORT:
        return None
    if parts["address"] is not None:
        try:
            ipaddress.IPv6Address(parts["address"])
        except ValueError:
            return None
    return parts["address"] or parts["name"]


def check_head(scope: Scope) -> None:
    """Refuses a head that is too large, or that two readers could read in two ways.

    Raises:
        Refusal: 400, 414, 415, 431 or 505.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    target = scope.get("raw_path") or scope["path"].encode()
    size = len(target) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in headers)
    if scope["http_version"] not in ("1.0", "1.1"):
        raise Refusal(505, "http_version", f"observed HTTP/{scope['http_version']}; allowed: 1.1; next: use that")
    if len(target) + len(scope["query_string"]) > LONGEST_TARGET_BYTES:
        text = f"observed a longer address; allowed: {LONGEST_TARGET_BYTES} bytes; next: correct it"
        raise Refusal(414, "target_too_long", text)
    if len(headers) > MOST_HEADERS or size > LARGEST_HEAD_BYTES:
        text = f"observed {len(headers)} headers; allowed: {MOST_HEADERS}, {LARGEST_HEAD_BYTES} bytes; next: send fewer"
        raise Refusal(431, "headers_too_large", text)
    if not target.startswith(b"/"):
        raise Refusal(400, "bad_target", "observed an address without a path; allowed: /v1/...; next: correct it")
    names = [name for name, _ in headers]
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
        raise Refusal(415, "packed_body", "observed a packed body; allowed: plain; next: send it unpacked")
    if b"transfer-encoding" in names and b"content-length" in names:
        raise Refusal(400, "two_lengths", "observed two lengths of one body; allowed: one; next: correct the client")


def check_host(header: str | None, must_be_here: bool) -> None:
    """Refuses a Host that is none and, where no key is asked for, one that is not this machine's.

    A page of another site in a browser of this machine can reach a loopback server; it cannot name it so.

    Raises:
        Refusal: 400 or 403.
    """
    name = host_name(header) if header else None
    if must_be_here:
        if name is None or not is_loopback(name):
            text = "observed a foreign Host; allowed: this machine's own; next: set a key"
            raise Refusal(403, "foreign_host", text)
    elif header and name is None:
        raise Refusal(400, "bad_host", "observed a Host that is none; allowed: name or name:port; next: correct it")
