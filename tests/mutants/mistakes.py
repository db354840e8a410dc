"""The mistakes that can be made in a module, one at a time, by the operators of cosmic-ray."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

Place = tuple[int, int]  # line, from 1, and column

# These need to be told which names to put where.
_WITH_ARGUMENTS = {"core/VariableInserter", "core/VariableReplacer"}

# The same in Python, for None and for the members of an enum.
_SAME_FOR_SINGLETONS = ("core/ReplaceComparisonOperator_Is_Eq", "core/ReplaceComparisonOperator_IsNot_NotEq")
# The same in CPython, for small numbers.
_SAME_FOR_SMALL_NUMBERS = ("core/ReplaceComparisonOperator_Eq_Is", "core/ReplaceComparisonOperator_NotEq_IsNot")
# Different only at the very moment at which a clock shows the time that it is compared with.
_SAME_BUT_FOR_A_MOMENT = tuple(
    f"core/ReplaceComparisonOperator_{one}" for one in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt")
)
_CLOCKS = {"time", "monotonic", "monotonic_ns", "time_ns"}


class Idle(NamedTuple):
    """A span of a module in which some mistakes change nothing that a program could notice."""

    begin: Place
    end: Place
    operators: tuple[str, ...] = ("",)  # how the names of these mistakes begin

    def holds(self, operator: str, place: Place) -> bool:
        """True if this mistake at this place changes nothing."""
        return self.begin <= place < self.end and operator.startswith(self.operators)


class Mistake(NamedTuple):
    """One change of one module."""

    module: str
    operator: str
    occurrence: int
    line: int
    at_import: bool  # its line runs when the module is imported

    def made_in(self, source: str) -> str:
        """The module with the mistake in it."""
        return mutate_code(source, get_operator(self.operator)(), self.occurrence)


def mistakes(module: str, source: str) -> Iterator[Mistake]:
    """All of them, without those that no program can notice or that only change what the log says."""
    syntax = ast.parse(source)
    tree, idle, in_functions = parso.parse(source), list(_idle(syntax)), set(_lines_in_functions(syntax))
    for name in sorted(set(operator_names()) - _WITH_ARGUMENTS):
        operator = get_operator(name)()
        found = ((node, place) for node in ast_nodes(tree) for place, _ in operator.mutation_positions(node))
        for occurrence, (node, place) in enumerate(found):
            lone_star = node.parent is not None and node.parent.type == "parameters"
            if not lone_star and not any(one.holds(name, place) for one in idle):
                yield Mistake(module, name, occurrence, place[0], place[0] not in in_functions)


def _lines_in_functions(tree: ast.Module) -> Iterator[int]:
    """The lines that run when a function is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from range(node.body[0].lineno, (node.end_lineno or 0) + 1)


def _idle(tree: ast.Module) -> Iterator[Idle]:
    """Where nothing is computed, where two operators mean the same, and what only a person would notice."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(annotation=ast.expr() as nothing) | ast.AnnAssign(annotation=nothing):
                yield Idle(*_span(nothing))
            case ast.FunctionDef(returns=ast.expr() as nothing):
                yield Idle(*_span(nothing))
            case ast.Assign(value=ast.BinOp(op=ast.BitOr()) as nothing) if node in tree.body:
                yield Idle(*_span(nothing))
            case ast.Call(func=ast.Attribute(value=ast.Name(id="_logger"))):
                yield Idle(*_span(node))
            case ast.Compare():
                yield from _idle_comparisons(node)
            case ast.If(test=ast.Compare(left=ast.Attribute(attr="platform"), ops=[op], comparators=[_])):
                yield from _of_another_platform(node, op)
            case ast.ClassDef(keywords=keywords):
                yield from (Idle(*_span(one.value)) for one in keywords if one.arg in {"frozen", "kw_only"})
            case _:
                pass
    for statement in tree.body:  # a limit in bytes or seconds, or another one, that is different by 1
        match statement:
            case ast.Assign(targets=[target, *_], value=value) if any(map(_is_a_limit, ast.walk(target))):
                yield Idle(*_span(value), ("core/NumberReplacer",))
            case _:
                pass


def _idle_comparisons(node: ast.Compare) -> Iterator[Idle]:
    """The operators of a comparison that could be others without any difference."""
    operands = [node.left, *node.comparators]
    for left, right in zip(operands, operands[1:], strict=False):
        between = (_span(left)[1], _span(right)[0])
        if any(map(_is_a_singleton, (left, right))):
            yield Idle(*between, _SAME_FOR_SINGLETONS)
        if any(map(_is_a_small_number, (left, right))):
            yield Idle(*between, _SAME_FOR_SMALL_NUMBERS)
        if any(map(_is_a_clock, (*ast.walk(left), *ast.walk(right)))):
            yield Idle(*between, _SAME_BUT_FOR_A_MOMENT)


def _of_another_platform(node: ast.If, op: ast.cmpop) -> Iterator[Idle]:
    """The branch that only Windows takes: mistakes are tried on Linux or macOS."""
    names_windows = isinstance(node.test, ast.Compare) and ast.unparse(node.test.comparators[0]) == "'win32'"
    branch = node.body if isinstance(op, ast.Eq) else node.orelse
    if names_windows and branch:
        yield Idle((branch[0].lineno, branch[0].col_offset), _span(branch[-1])[1])


def _is_a_singleton(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=None | True | False):
            return True
        case ast.Attribute(value=ast.Name(id=name), attr=attr):
            return name[:1].isupper() and attr.isupper()  # a member of an enum
        case _:
            return False


def _is_a_small_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and -5 <= node.value <= 256


def _is_a_clock(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr=attr)):
            return attr in _CLOCKS
        case _:
            return False


def _is_a_limit(node: ast.AST) -> bool:
    if not isinstance(node, ast.Name) or not node.id.isupper():
        return False
    words = node.id.strip("_").split("_")
    return words[0] in {"MAX", "MIN"} or words[-1] in {"S", "BYTES"}


def _span(node: ast.expr | ast.stmt) -> tuple[Place, Place]:
    return (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
