"""Copies of the verifier in which one check is missing.

A mutant is the source of one module with one refusal deleted: an `if` that raises never does, one half of a condition
is gone, one `ledger.run(…)` is not run. `verifier_with` runs such a source beside the others in a package of its own,
so that the real modules stay as they are.
"""

import ast
import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType

import attestation

FOLDER = Path(attestation.__file__).parent
# In the order of their imports; `errors`, `checks`, `quote` and `recent` refuse nothing here and are shared.
MODULES = (
    "der",
    "pem",
    "certificates",
    "pki",
    "pck",
    "validity",
    "chains",
    "collateral",
    "tcb",
    "documents",
    "endorsements",
    "quoting",
    "appraisal",
    "arguments",
    "verifier",
)
_DEMANDS_ALL = {"conclude", "reaches", "_Case", "check_chain"}
"""Functions and classes whose every `and` is a list of demands."""

_Place = ast.If | ast.Expr | ast.BoolOp


@dataclass(frozen=True)
class Mutant:
    module: str
    place: int  # index in the walk over the module's tree
    line: int
    what: str

    def code(self) -> CodeType:
        tree = copy.deepcopy(source(self.module))
        _delete(_places(tree)[self.place], self.what)
        return compile(ast.fix_missing_locations(tree), f"mutant/{self.module}.py", "exec")

    @property
    def id(self) -> str:
        return f"{self.module}:{self.line} {self.what}"


@cache
def source(module: str) -> ast.Module:
    return ast.parse((FOLDER / f"{module}.py").read_text("utf-8"))


@cache
def compiled(module: str) -> CodeType:
    return compile(source(module), f"attestation/{module}.py", "exec")


def mutants(module: str) -> Iterator[Mutant]:
    """Every way to delete one check from a module."""
    demands = _demands(source(module))
    for at, node in enumerate(_places(source(module))):
        for what in _deletions(node, demands):
            yield Mutant(module, at, node.lineno, what)


def _places(tree: ast.Module) -> list[_Place]:
    return [node for node in ast.walk(tree) if isinstance(node, _Place)]


def _demands(tree: ast.Module) -> set[ast.AST]:
    """The conditions in which every part of an `and` must hold for a quote to pass."""
    named = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in _DEMANDS_ALL
    ]
    return {
        found
        for node in named
        for found in ast.walk(node)
        if isinstance(found, ast.BoolOp) and isinstance(found.op, ast.And)
    }


def _deletions(node: _Place, demands: set[ast.AST]) -> Iterator[str]:
    if isinstance(node, ast.BoolOp) and node in demands:
        for at in range(len(node.values)):
            yield f"demand {at} is missing"
    elif isinstance(node, ast.If) and _refuses(node.body):
        yield "never refuses"
        if isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.Or):
            for at in range(len(node.test.values)):
                yield f"part {at} of the condition is missing"
        if isinstance(node.test, ast.Compare) and len(node.test.ops) > 1:
            yield "part 0 of the comparison is missing"
            yield "part 1 of the comparison is missing"
    elif isinstance(node, ast.Expr) and any(_calls(node.value, judged) for judged in ("run", "each", "later")):
        yield "does not run"


def _refuses(body: list[ast.stmt]) -> bool:
    """Whether a block ends in a refusal: it raises, or hands a failure to the ledger."""
    last = body[-1]
    if isinstance(last, ast.Raise):
        return True
    return isinstance(last, ast.Expr) and _calls(last.value, "failed")


def _calls(value: ast.expr, method: str) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == method


def _delete(node: _Place, what: str) -> None:
    part = int(what.split()[1]) if what.endswith("missing") else 0
    if isinstance(node, ast.BoolOp):
        node.values[part] = ast.Constant(True)
    elif isinstance(node, ast.Expr):
        node.value = ast.Constant(None)
    elif what == "never refuses":
        node.test = ast.Constant(False)
    elif isinstance(node.test, ast.BoolOp):
        node.test.values[part] = ast.Constant(False)
    elif isinstance(node.test, ast.Compare):
        if part == 0:
            node.test.left = node.test.comparators[0]
        node.test.comparators.pop(part - 1 if part else 0)
        node.test.ops.pop(part)


@contextmanager
def verifier_with(mutant: Mutant | None) -> Iterator[dict[str, ModuleType]]:
    """The modules of the verifier, one of them replaced by the mutant, importable only while this lasts."""
    names = {name: f"attestation.{name}" for name in MODULES}
    kept = {name: sys.modules[full] for name, full in names.items()}
    made: dict[str, ModuleType] = {}
    try:
        for name, full in names.items():
            module = ModuleType(full)
            module.__file__ = str(FOLDER / f"{name}.py")
            sys.modules[full] = made[name] = module
            setattr(attestation, name, module)
            exec(mutant.code() if mutant and mutant.module == name else compiled(name), module.__dict__)
        yield made
    finally:
        for name, full in names.items():
            sys.modules[full] = kept[name]
            setattr(attestation, name, kept[name])
