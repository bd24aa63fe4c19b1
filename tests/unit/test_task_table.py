"""The table of tasks, and that nothing beside it asks which task it is, or what kind of prediction or head it has."""

import ast
from pathlib import Path
from typing import get_args

import pytest

import vision_stack.data.configs  # noqa: F401  registers data sets
from vision_stack.config import registered
from vision_stack.structures import Task
from vision_stack.training.tasks import TASKS

PACKAGE = Path(__file__).parents[2] / "vision_stack"
NAMES = get_args(Task)
KINDS = {"Instances", "PanopticSegmentation", "SemanticSegmentation", "MaskOutputs", "CocoEvaluator"}
SOURCES = [p for p in PACKAGE.rglob("*.py") if p.parent.name != "tasks"]


def branches(node: ast.AST) -> bool:
    """Whether the code compares a task's name, or asks for the type of a head or a prediction."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        named = any("task" in ast.unparse(side).lower().rpartition(".")[2] for side in sides)
        return named and any(isinstance(c, ast.Constant) and c.value in NAMES for s in sides for c in ast.walk(s))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
        asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
        return any(name in KINDS or ("Head" in name and name != "Head") for name in asked)
    return False


def test_every_task_has_its_entry() -> None:
    assert set(TASKS) == set(NAMES)


def test_every_reader_of_a_data_set_is_for_a_task() -> None:
    for cls in registered("data").values():
        assert cls.readers.keys() <= set(NAMES)


@pytest.mark.parametrize("file", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_branches_on_the_task_or_the_kind_of_prediction_or_head(file: Path) -> None:
    found = [ast.unparse(node) for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if branches(node)]
    assert found == []


@pytest.mark.parametrize(
    "code", ['task == "semantic"', 'data.task in ("instance", "detection")', "isinstance(found, Instances)"]
)
def test_branches_are_recognised(code: str) -> None:
    assert branches(ast.parse(code, mode="eval").body)
