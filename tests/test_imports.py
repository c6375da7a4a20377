"""The house's floors, read from the sources: imports go down only, and three packages have one door each."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOOR = {
    "types": 0,
    "activations": 1,
    "losses": 1,
    "metrics": 1,
    "ops": 1,
    "proximal": 1,
    "backprop": 2,
    "optimizers": 2,
    "seismic": 2,
    "diffusion": 2,
    "models": 3,
    "training": 4,
    "inference": 4,
}
HOST_SIDE = {"data", "weights"}  # import only `types`
# Moved boundary: `loop.fit` draws its batches in the order that `data/batches.py` defines, one place for both.
EXCEPTIONS = {("training/loop.py", "jaxnets.data.batches")}
FILES = sorted((ROOT / "jaxnets").rglob("*.py"))


def room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "jaxnets").parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """Dotted names of everything a file imports, `from a import b` as `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    here = room(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "jaxnets" or len(parts) < 2 or parts[1] == here:
            continue
        target = parts[1]
        if here in HOST_SIDE:
            assert target == "types", f"{path}: host-side code imports {name}"
        else:
            if (path.relative_to(ROOT / "jaxnets").as_posix(), name) in EXCEPTIONS:
                continue
            assert target in FLOOR, f"{path}: {name} is host side or unknown"
            assert FLOOR[target] < FLOOR[here], f"{path}: {here} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_heavy_package_has_one_door(path):
    packages, relative = top(imported(path)), path.relative_to(ROOT / "jaxnets").as_posix()
    assert "flax" not in packages or room(path) == "models", "only models/ imports flax"
    assert "orbax" not in packages or relative == "training/checkpoint.py", "only training/checkpoint.py imports orbax"
    assert "experiments" not in packages, "nothing imports experiments"
    assert "torch" not in packages, "torch is never required"
    if room(path) == "proximal":
        assert not packages & {"flax", "optax"}, "proximal/ is usable alone"
    if room(path) == "training":
        assert not any(name.startswith("jaxnets.models") for name in imported(path)), "training/ never names a model"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_neither_prints_nor_jits_nor_logs_nor_reads(path):
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(f, ast.Name) and f.id == "print" for f in calls), "the library never prints"
    names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name | ast.Attribute)}
    relative = path.relative_to(ROOT / "jaxnets").as_posix()
    assert not names & {"jax.jit", "jit"} or relative == "training/loop.py", "only training/loop.py jits"
    assert "logging" not in top(imported(path)), "the library never logs"
    reads = relative.startswith(("data/", "weights/")) or relative in ("seismic/segy.py", "training/checkpoint.py")
    assert reads or not any(isinstance(f, ast.Name) and f.id == "open" for f in calls), "this file may not read files"


def test_importing_jaxnets_imports_nothing_heavy():
    code = "import sys, jaxnets; print(sorted({'jax', 'numpy', 'flax', 'optax'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"
