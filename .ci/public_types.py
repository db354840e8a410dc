"""Fails if a type checker that uses the package meets a public name whose type it has to guess.

Runs `basedpyright --verifytypes` on a copy of the package, because it finds no editable installation. Prints what is
wrong with the names that `atomscale_bluesky`, its server, its plans and its errors export.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

PACKAGE = "atomscale_bluesky"
PUBLIC_MODULES = (PACKAGE, f"{PACKAGE}.server", f"{PACKAGE}.plans", f"{PACKAGE}.errors")


def main() -> int:
    """Return 1 if a public name has a type that is not known, 0 otherwise."""
    sys.path.insert(0, os.getcwd())
    public = tuple(sorted(_public_names()))
    bad = [
        symbol
        for symbol in _report()["typeCompleteness"]["symbols"]
        if not symbol["isTypeKnown"] and _is_public(symbol["name"], public)
    ]
    for symbol in bad:
        why = "; ".join(one["message"].replace("\n", " ") for one in symbol["diagnostics"])
        print(f"{symbol['name']}: {why or 'one of its members, or a type that it uses, is not known'}")
    print(f"public names: {len(public)}; with a type that is not known: {len(bad)}")
    return 1 if bad else 0


def _public_names() -> set[str]:
    """Return the full names of what the public modules export, as the modules that define them have them."""
    names: set[str] = set()
    for name in PUBLIC_MODULES:
        module = importlib.import_module(name)
        exported: list[str] = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        for one in exported:
            found = getattr(module, one)
            if inspect.isclass(found) or inspect.isfunction(found):
                names.add(f"{found.__module__}.{found.__qualname__}")
            names.add(f"{name}.{one}")
    return {name for name in names if name.startswith(f"{PACKAGE}.")}


def _is_public(name: str, public: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in public)


def _report() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        ignored = shutil.ignore_patterns("__pycache__", "static")
        shutil.copytree(PACKAGE, Path(folder) / PACKAGE, ignore=ignored)
        paths = [folder, sysconfig.get_path("purelib"), *filter(None, sys.path)]
        options = ["--verifytypes", PACKAGE, "--ignoreexternal", "--outputjson"]
        done = subprocess.run(
            ["basedpyright", "--pythonpath", sys.executable, *options],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            capture_output=True,
            text=True,
            check=False,  # its exit code counts the private names too
        )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


if __name__ == "__main__":
    sys.exit(main())
