"""Who may import whom (docs/architecture.md), read off the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vision_stack"
CORE = {"config", "structures"}
BASE = CORE | {"ops", "layers", "outputs"}
ALLOWED = {
    "config": set(),
    "structures": {"config"},
    "outputs": set(),
    "ops": CORE,
    "layers": CORE | {"ops"},
    "backbones": BASE | {"weights"},
    "necks": BASE,
    "losses": BASE,
    "postprocess": BASE,
    "heads": BASE | {"losses", "postprocess"},
    "weights": BASE,
    "data": CORE | {"ops"},
    "metrics": CORE | {"ops"},
    "visualization": CORE | {"ops"},
    "published": BASE | {"backbones", "weights"},
    "model": BASE | {"backbones", "necks", "heads", "weights", "published", "postprocess", "data"},
    "testing": BASE | {"backbones", "necks", "heads"},
    "__main__": {"commands"},
    "compat": BASE | {"backbones", "necks", "heads", "losses", "data", "model"},
    "training": BASE
    | {"backbones", "necks", "heads", "losses", "weights", "postprocess", "data", "metrics", "visualization", "model"}
    | {"published"},
    "commands": {"config", "structures", "ops", "data", "model", "backbones", "training", "visualization"},
}
FRAMEWORKS = {
    "hydra": {"commands"},
    "pytorch_lightning": {"training", "data/datamodule.py"},
    "lightning": set(),
    "transformers": {"backbones"},
}


def imported_modules(file: Path) -> set[str]:
    """Absolute names of all that a file imports, functions' bodies included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("file", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    relative = file.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    assert room in ALLOWED, f"{relative}: say in ALLOWED what this room may import"
    for name in imported_modules(file):
        top, *rest = name.split(".")
        if top == "vision_stack":
            assert rest[0] == room or rest[0] in ALLOWED[room], f"{relative} imports {name}"
        if top in FRAMEWORKS:
            homes = FRAMEWORKS[top]
            assert room in homes or relative.as_posix() in homes, f"{relative} imports {top}"


def test_no_file_imports_itself_through_others() -> None:
    names = {".".join(("vision_stack", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in SOURCES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    imports = {}
    for name, path in names.items():
        found = {each if each in names else each.rpartition(".")[0] for each in imported_modules(path)}
        imports[name] = found & set(names) - {name}
    while leaves := {name for name, needed in imports.items() if not needed & set(imports)}:
        imports = {name: needed for name, needed in imports.items() if name not in leaves}
    assert imports == {}, "these import each other in a circle, or what is in one"


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("verb", ["train", "eval", "predict"])
def test_scripts_run_the_command_of_their_name(verb: str) -> None:
    script = ROOT / f"{verb}.py"
    assert f'main(["{verb}", *sys.argv[1:]])' in script.read_text(encoding="utf-8")
    assert imported_modules(script) == {"sys", "vision_stack.commands.main"}
    assert len(script.read_text(encoding="utf-8").splitlines()) < 10
