# SPDX-License-Identifier: GPL-2.0-or-later
"""The layers of the package import only downwards, and the pure ones reach nothing of the world."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = "qmpfilter"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE

#: From the bottom up; a layer imports from lower lines only, neighbours on a line not from each other.
LAYERS = (
    ("errors", "flock", "printable", "value_class"),
    ("layout", "audit"),
    ("wire",),
    ("saveimage", "svm", "kvm"),
    ("verdict",),
    ("filter",),
    ("inspect",),
    ("doctor", "selftest", "relay"),
    ("qmp",),
    ("libvirt", "cluster"),
    ("daemon", "report"),
    ("cli",),
    ("__main__",),
)
RANKS = {layer: rank for rank, line in enumerate(LAYERS) for layer in line}

#: What is pure takes bytes and gives bytes: whole layers, or single modules of one.
PURE = (
    "errors",
    "audit.chain",
    "cluster.changes",
    "cluster.counts",
    "cluster.decide",
    "cluster.form",
    "cluster.host",
    "cluster.plan",
    "cluster.rollout",
    "cluster.store",
    "cluster.told",
    "layout",
    "printable",
    "value_class",
    "report",
    "wire",
    "svm",
    "verdict",
    "filter",
    "inspect",
    "libvirt.events",
    "libvirt.job",
    "libvirt.listeners",
    "libvirt.metadata",
    "libvirt.options",
    "libvirt.outlook",
    "doctor.as_text",
    "doctor.behaviour",
    "doctor.checks",
    "doctor.survey",
    "libvirt.arrival",
    "libvirt.domain",
    "relay.pair_protocol",
    "saveimage.header",
    "saveimage.identity",
)

WORLD = {
    "asyncio",
    "concurrent",
    "multiprocessing",
    "queue",
    "sched",
    "select",
    "selectors",
    "signal",
    "socket",
    "socketserver",
    "ssl",
    "subprocess",
    "threading",
    "time",
}

MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


@functools.cache
def imported(module: str) -> tuple[str, ...]:
    """Full names of what a module imports, wherever in it: ``from a import b`` gives ``a.b``."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, node.module] if node.module else start)
            names += (f"{base}.{alias.name}" for alias in node.names)
    return tuple(names)


def layer(name: str) -> str | None:
    """The layer that a full name belongs to; None for other packages and for qmpfilter itself."""
    parts = name.split(".")
    if parts[0] != PACKAGE or len(parts) == 1 or parts[1] == "__version__":
        return None
    return parts[1]


def is_pure(module: str) -> bool:
    return any(f"{module}.".startswith(f"{PACKAGE}.{pure}.") for pure in PURE)


def test_every_layer_has_a_rank() -> None:
    layers = {found for module in MODULES if (found := layer(module)) is not None}
    assert layers <= RANKS.keys(), "add new packages to LAYERS"
    assert "wire" in layers


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    own = layer(module)
    for name in imported(module):
        other = layer(name)
        if other is None or other == own:
            continue
        assert own is not None, f"{module} imports {name}: the package itself imports no layer"
        assert RANKS[other] < RANKS[own], f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("module", [module for module in MODULES if is_pure(module)])
def test_pure_modules_stay_pure(module: str) -> None:
    reached = {name.split(".")[0] for name in imported(module)} & WORLD
    assert not reached, f"{module} imports {', '.join(sorted(reached))}"


def test_pure_modules_exist() -> None:
    for pure in PURE:
        assert f"{PACKAGE}.{pure}" in MODULES
