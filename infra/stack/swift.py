"""An S3 server from packages: OpenStack Swift with its S3 API, one replica, data in a folder."""

from __future__ import annotations

import configparser
import getpass
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from infra.stack.credentials import Credentials
from infra.stack.layout import HOST, REGION, S3_KEY_ID, S3_SERVERS, Layout
from infra.stack.postgres import STACK_ENVIRONMENT
from slimtts.errors import InvalidInputError, MissingToolError

PROGRAMS = STACK_ENVIRONMENT / "bin"
PART_POWER = "4"  # 16 partitions: one disk
# versioned_writes before symlink: the other way round, a bucket with versions returns empty objects.
PROXY_PIPELINE = "catch_errors gatekeeper healthcheck bulk s3api tempauth slo versioned_writes symlink proxy-server"
LARGEST_OBJECT_BYTES = 5 * 2**30 + 2  # of one upload; larger ones are sent in parts
# Swift's daemons, unlike its servers, look for swift.conf only in /etc/swift.
RUN_UPDATER = """
import sys
from swift.common.utils import set_swift_dir
set_swift_dir(sys.argv.pop(1))
from swift.obj.updater import main
sys.exit(main())
"""
Sections = Mapping[str, Mapping[str, str]]


def data_folder(layout: Layout) -> Path:
    """Configuration, rings and objects."""
    return layout.folder / "s3"


def server_command(layout: Layout, server: str) -> tuple[str, ...]:
    """`server` is one of S3_SERVERS, or s3-updater, which lists objects whose container server was away."""
    if server == "s3-updater":
        etc = data_folder(layout) / "etc"
        return (str(PROGRAMS / "python"), "-c", RUN_UPDATER, str(etc), str(_settings(layout, "s3-object")), "-v")
    program = "swift-proxy-server" if server == "s3" else f"swift-{server.removeprefix('s3-')}-server"
    return (str(PROGRAMS / program), str(_settings(layout, server)), "-v")  # -v: log to the console, not to syslog


def prepare_storage(layout: Layout, credentials: Credentials) -> None:
    """Writes the configuration, and the rings of the ports in use.

    Raises:
        MissingToolError: Swift is not installed.
        InvalidInputError: the file system keeps no extended attributes.
    """
    if not (PROGRAMS / "swift-proxy-server").exists():
        raise MissingToolError("swift", "the S3 server", "make stack, which fills .venv-stack")
    root = data_folder(layout)
    for name in ("etc", "devices/disk", "recon"):
        (root / name).mkdir(parents=True, exist_ok=True)
    _check_extended_attributes(root)
    for server in S3_SERVERS:
        _write_private(_settings(layout, server), _server_settings(layout, credentials, server))
    salt = root / "etc" / "swift.conf"
    if not salt.exists():  # names of objects on the disk depend on it
        hashing = {"swift_hash_path_prefix": secrets.token_hex(8), "swift_hash_path_suffix": secrets.token_hex(8)}
        policy = {"name": "one", "default": "yes"}
        limits = {"max_file_size": str(LARGEST_OBJECT_BYTES)}
        _write_private(salt, {"swift-hash": hashing, "storage-policy:0": policy, "swift-constraints": limits})
    for server in S3_SERVERS[1:]:
        _build_ring(layout, server)


def _settings(layout: Layout, server: str) -> Path:
    return data_folder(layout) / "etc" / f"{server}.conf"


def _server_settings(layout: Layout, credentials: Credentials, server: str) -> Sections:
    root = data_folder(layout)
    common = {
        "bind_ip": HOST,
        "bind_port": str(layout.ports.by_service()[server]),
        "workers": "0",
        "user": getpass.getuser(),
        "swift_dir": str(root / "etc"),
        "devices": str(root / "devices"),
        "recon_cache_path": str(root / "recon"),
        "mount_check": "false",
        "fallocate_reserve": "0",
        "log_level": "WARNING",
    }
    if server != "s3":
        app = server.removeprefix("s3-")
        return {
            "DEFAULT": common,
            "pipeline:main": {"pipeline": f"healthcheck {app}-server"},
            f"app:{app}-server": {"use": f"egg:swift#{app}"},
            "filter:healthcheck": {"use": "egg:swift#healthcheck"},
            "object-updater": {"interval": "10", "concurrency": "1"},
        }
    account, user = S3_KEY_ID.split(":")
    options: dict[str, dict[str, str]] = {
        "versioned_writes": {"allow_object_versioning": "true"},
        "s3api": {"location": REGION, "s3_acl": "false", "dns_compliant_bucket_names": "true"},
        "tempauth": {f"user_{account}_{user}": f"{credentials.s3} .admin"},
    }
    filters = PROXY_PIPELINE.split()[:-1]
    return {
        "DEFAULT": common,
        "pipeline:main": {"pipeline": PROXY_PIPELINE},
        "app:proxy-server": {
            "use": "egg:swift#proxy",
            "account_autocreate": "true",
            "allow_account_management": "true",
        },
        **{f"filter:{name}": {"use": f"egg:swift#{name}", **options.get(name, {})} for name in filters},
    }


def _write_private(path: Path, sections: Sections) -> None:
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    for name, values in sections.items():
        parser[name] = dict(values)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        parser.write(stream)


def _build_ring(layout: Layout, server: str) -> None:
    """The ring says on which port the server is, so another port means another ring. The placement stays the same."""
    etc, kind = data_folder(layout) / "etc", server.removeprefix("s3-")
    port = layout.ports.by_service()[server]
    built_for = etc / f"{kind}.port"
    if built_for.is_file() and built_for.read_text() == str(port):
        return
    builder = etc / f"{kind}.builder"
    for arguments in (
        ["create", PART_POWER, "1", "1"],
        ["add", f"r1z1-{HOST}:{port}/disk", "1"],
        ["rebalance"],
    ):
        command = [str(PROGRAMS / "python"), str(PROGRAMS / "swift-ring-builder"), str(builder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise InvalidInputError(
                f"ring of {server}", (done.stdout + done.stderr).strip(), "a ring", "remove the folder of S3's settings"
            )
    built_for.write_text(str(port))


def _check_extended_attributes(folder: Path) -> None:
    if sys.platform != "linux":
        return
    try:
        os.setxattr(folder, "user.slimtts", b"1")
    except OSError as error:
        raise InvalidInputError(
            str(folder), f"no extended attributes ({error.strerror})", "a file system that has them, as ext4 or xfs",
            "choose another --folder",
        ) from None  # fmt: skip
