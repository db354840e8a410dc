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


class Mistake(NamedTuple):
    """One change of one module."""

    module: str
    operator: str
    occurrence: int
    line: int

    def made_in(self, source: str) -> str:
        """The module with the mistake in it."""
        return mutate_code(source, get_operator(self.operator)(), self.occurrence)


def mistakes(module: str, source: str) -> Iterator[Mistake]:
    """All of them, without those that no program can notice or that only change what the log says."""
    tree, idle = parso.parse(source), list(_idle(ast.parse(source)))
    for name in sorted(set(operator_names()) - _WITH_ARGUMENTS):
        operator = get_operator(name)()
        found = ((node, place) for node in ast_nodes(tree) for place, _ in operator.mutation_positions(node))
        for occurrence, (node, place) in enumerate(found):
            lone_star = node.parent is not None and node.parent.type == "parameters"
            if not lone_star and not any(begin <= place < end for begin, end in idle):
                yield Mistake(module, name, occurrence, place[0])


def _idle(tree: ast.Module) -> Iterator[tuple[Place, Place]]:
    """Where nothing is computed: annotations, unions of types, and calls of a logger."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(annotation=ast.expr() as nothing) | ast.AnnAssign(annotation=nothing):
                yield _span(nothing)
            case ast.FunctionDef(returns=ast.expr() as nothing):
                yield _span(nothing)
            case ast.Assign(value=ast.BinOp(op=ast.BitOr()) as nothing) if node in tree.body:
                yield _span(nothing)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="_logger"))):
                yield _span(node)


def _span(node: ast.expr) -> tuple[Place, Place]:
    return (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
