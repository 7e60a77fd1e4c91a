"""What the package's modules import of each other and of others, read from their source."""

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipeline"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}
# Its functions import what they alone need: who imports one of them depends on that function's imports.
SAVED = "pipeline.stages.saved"


@cache
def source(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imported(module: str) -> frozenset[str]:
    """Every module that `module` names in an import anywhere in it, ours as `pipeline.x.y`, others by their root."""
    names = named(source(module).body if module == SAVED else list(ast.walk(source(module))))
    return frozenset(name if name.startswith("pipeline.") else name.split(".")[0] for name in names)


def named(nodes: Sequence[ast.AST]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from pipeline.model import cvae` names modules, `from pipeline.model.cvae import CVAE` one.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & MODULES.keys()) or {node.module}
            wanted = {alias.name for alias in node.names}
            for function in source(SAVED).body if SAVED in (node.module, *inner) else ():
                if isinstance(function, ast.FunctionDef) and wanted & {function.name, "saved"}:
                    names |= named(list(ast.walk(function)))
    return names


def ours(module: str) -> frozenset[str]:
    """The modules of ours that `module` imports directly."""
    return imported(module) & MODULES.keys()


def closure(module: str) -> set[str]:
    """`module` and everything of ours that it imports, directly or not."""
    found, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(ours(name))
    return found


def room(module: str) -> str:
    """`model` of `pipeline.model.cvae`."""
    return module.split(".")[1]
