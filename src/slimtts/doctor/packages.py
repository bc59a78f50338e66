"""Python and its packages, held against what the installed slimtts declares; nothing of them is imported."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING

from slimtts.doctor.finding import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

TOPIC = "Python packages"
SHOWN = ("torch", "transformers", "torchao", "prefect", "mlflow", "dvc")
INSTALL = "make install"


def package_findings() -> list[Finding]:
    """Python, slimtts, what it needs, and what each family's extra adds."""
    supported = sys.version_info[:2] == (3, 11)
    found = [
        Finding(
            TOPIC, "Python", "ok" if supported else "missing", platform.python_version(),
            "" if supported else "use Python 3.11", is_needed=True,
        )
    ]  # fmt: skip
    try:
        from packaging.requirements import Requirement

        declared = [Requirement(line) for line in metadata.requires("slimtts") or []]
        extras = metadata.metadata("slimtts").get_all("Provides-Extra") or []
    except (metadata.PackageNotFoundError, ImportError) as error:
        return [*found, Finding(TOPIC, "slimtts", "missing", f"not installed: {error}", INSTALL, is_needed=True)]
    bad, count = [], 0
    for requirement in declared:
        if _is_always(requirement):
            count += 1
            if problem := _problem(requirement):
                bad.append(Finding(TOPIC, requirement.name, "missing", problem, INSTALL, is_needed=True))
    versions = ", ".join(f"{name} {_version(name)}" for name in SHOWN if _version(name))
    detail = f"{count - len(bad)} of {count} as declared; {versions}"
    found += [Finding(TOPIC, "slimtts", "ok", f"{_version('slimtts')}: {detail}"), *bad]
    for extra in extras:
        wanted = [r for r in declared if r.marker and r.marker.evaluate({"extra": extra}) and not _is_always(r)]
        problems = [f"{r.name} {problem}" for r in wanted if (problem := _problem(r))]
        have = ", ".join(f"{r.name} {_version(r.name)}" for r in wanted) or "needs no package more"
        found.append(
            Finding(
                TOPIC, f"family {extra}", "missing" if problems else "ok", "; ".join(problems) or have,
                f"pip install 'slimtts[{extra}]'" if problems else "",
            )
        )  # fmt: skip
    return found


def _is_always(requirement: Requirement) -> bool:
    """Whether slimtts wants it without any extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _problem(requirement: Requirement) -> str:
    """Empty when the package is there in a version that is allowed."""
    version, allowed = _version(requirement.name), requirement.specifier
    if not version:
        return f"not installed, wanted {allowed or 'any version'}"
    return "" if allowed.contains(version, prereleases=True) else f"{version} installed, wanted {allowed}"
