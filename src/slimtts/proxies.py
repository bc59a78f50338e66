"""Proxies of the environment: servers on this machine are never asked through one."""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib.util import find_spec

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SOCKS_PACKAGE = "socksio"  # of httpx, which asks Prefect and the model hub


def bypass_loopback(variables: MutableMapping[str, str]) -> None:
    """Adds this machine to NO_PROXY, for this process and its children."""
    hosts = [host.strip() for host in (variables.get("no_proxy") or variables.get("NO_PROXY") or "").split(",")]
    hosts = [host for host in hosts if host]
    if "*" in hosts:
        return
    hosts += [host for host in LOOPBACK if host not in hosts]
    variables["no_proxy"] = variables["NO_PROXY"] = ",".join(hosts)


def drop_unusable(variables: MutableMapping[str, str]) -> list[str]:
    """Removes proxies that httpx cannot use, which would end every client at its birth; returns their names."""
    if find_spec(SOCKS_PACKAGE):
        return []
    names = [
        name
        for name, address in variables.items()
        if name.lower() in ("all_proxy", "http_proxy", "https_proxy") and address.lower().startswith("socks")
    ]
    for name in names:
        del variables[name]
    return names
