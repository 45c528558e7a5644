"""Where a number came from: code, versions, device, command (design invariant 6); and digests of a stage's code."""

import ast
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robuq_bench import __version__
from robuq_bench.errors import BenchError

STARTED = time.monotonic()
"""When this process began, as near as an import can tell: a stage's wall time counts from here."""
PACKAGE = Path(__file__).parent
RECORDED = ("torch", "diffusers", "numpy", "scipy", "torch-fidelity", "snakemake")
REQUIRED = ("version", "commit", "dirty", "python", "packages", "machine", "device", "command", "time", "seconds")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def collect(device: str = "cpu", **facts: Any) -> dict[str, Any]:
    """The provenance record of one result. `facts` are the stage's own: preset, recipe, seeds, n, protocol.

    `dirty` is about package, recipes, presets and rules, new files included. Outside a git checkout, `commit` is
    "not a git checkout" and `dirty` is null: stated, never left out.
    """
    status = _git("status", "--porcelain", "--", ".", ":/baselines", ":/config", ":/workflows")
    return {
        "version": __version__,
        "commit": _git("rev-parse", "HEAD") or "not a git checkout",
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "packages": {name: _installed(name) for name in RECORDED},
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "device": device,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - STARTED, 1),
        **facts,
    }


def check(record: dict[str, Any], where: str) -> dict[str, Any]:
    """Return `record["provenance"]`. Raises BenchError naming the missing fields: no number without provenance."""
    provenance = record.get("provenance")
    missing = [key for key in REQUIRED if key not in (provenance or {})]
    if missing:
        raise BenchError(f"{where}: provenance lacks {', '.join(missing)}; make this result again")
    return provenance


def code_digest(module: str) -> str:
    """SHA-256 (first 16 digits) over `module`, every module of this package it imports, directly or not, and the
    other files (templates, kernels, packaged data) in the folders of those modules.

    Used as a Snakemake param, so that editing a module re-runs the stages that use it and no others.
    """
    digest = hashlib.sha256()
    modules = _reachable(module)
    for path in sorted(modules | {file for folder in {m.parent for m in modules} for file in _data(folder)}):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _reachable(module: str) -> set[Path]:
    todo, seen = [module], set()
    while todo:
        name = todo.pop()
        if parent := name.rpartition(".")[0]:  # importing a module runs its package's __init__ as well
            todo.append(parent)
        path = _path(name)
        if path is not None and path not in seen:
            seen.add(path)
            todo += _imports(path)
    return seen


@functools.cache
def _data(folder: Path) -> tuple[Path, ...]:
    """Files of a room that are not Python, in it or in folders that are no packages; the root's belong to no stage."""
    if folder == PACKAGE:
        return ()
    inner = [path for path in folder.iterdir() if path.is_dir() and not (path / "__init__.py").exists()]
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"]
    return (*files, *(file for path in inner if path.name != "__pycache__" for file in _data(path)))


def _path(module: str) -> Path | None:
    parts = module.split(".")[1:]
    if not parts:  # the package itself: its __init__ holds the version alone
        return None
    candidates = (PACKAGE.joinpath(*parts[:-1], f"{parts[-1]}.py"), PACKAGE.joinpath(*parts, "__init__.py"))
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _imports(path: Path) -> tuple[str, ...]:
    """Names in this package imported anywhere in `path`, functions included (late imports count)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in found if name.split(".")[0] == PACKAGE.name)
