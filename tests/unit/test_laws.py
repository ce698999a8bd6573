"""The laws of the house, held against every file of the package; nothing here is run, only read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from batchllm.job import Job

PACKAGE = Path(__file__).resolve().parents[2] / "batchllm"
LEVELS = [
    {"fields", "descriptors", "exact"},
    {"model", "errors"},
    {"expected"},
    {
        "job",
        "ports",
        "prompt",
        "schema",
        "pricing",
        "limits",
        "summary",
        "stats",
        "faults",
        "lines",
        "stop",
        "watch",
    },
    {"transport"},
    {"engine", "pipeline", "ledger", "layers", "providers", "sources", "sinks", "quota", "cache"},
    {"mainpath", "report", "simulate", "scale", "control", "pilot", "finish"},
    {"wire", "testing"},
    {"ui", "api"},
    {"cli"},
    {"__main__"},
]
"""Rooms from the ground up. The cli stands above the ui, which it shows things with; `testing` is for authors
of plug-ins and nobody in the house imports it."""
ONLY_IN = {
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli", "ui"},
    "httpx": {"transport"},
    "httptools": {"transport"},
    "jsonschema": {"schema"},
    "asyncio": {"transport", "api"},
    "aiohttp": {"simulate"},
    "trio": set[str](),
}
LONGEST_FILE = 350
LONGEST_FUNCTION = 60
MUTATORS = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "clear"}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
TEXTS = {file: (PACKAGE / file).read_text() for file in FILES}
TREES = {file: ast.parse(text, file) for file, text in TEXTS.items()}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def room_of(file: str) -> str:
    """The room that a file belongs to; the package's own `__init__` has none."""
    return "" if file == "__init__.py" else Path(file).parts[0].removesuffix(".py")


def level_of(room: str) -> int:
    found = [i for i, rooms in enumerate(LEVELS) if room in rooms]
    assert found, f"the room {room} has no level: give it one here and in the design"
    return found[0]


def imports(file: str) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in it, as dotted names with their line."""
    parts = ["batchllm", *Path(file).with_suffix("").parts]
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            if module == "batchllm":
                yield from ((f"batchllm.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def functions(file: str) -> Iterator[Function]:
    for node in ast.walk(TREES[file]):
        if isinstance(node, Function):
            yield node


def called(file: str) -> set[str]:
    """The last names of all that a file calls."""
    found = [node.func for node in ast.walk(TREES[file]) if isinstance(node, ast.Call)]
    return {getattr(func, "attr", None) or getattr(func, "id", "") for func in found}


def test_imports_point_down_only() -> None:
    broken = []
    for file in FILES:
        room = room_of(file)
        for module, line in imports(file):
            package, _, rest = module.partition(".")
            imported = rest.split(".")[0]
            if package != "batchllm" or imported in ("", "__version__", room) or not room:
                continue
            if level_of(imported) >= level_of(room):
                broken.append(f"{file}:{line}: {room} imports {imported}, which is not below it")
    assert not broken


def test_layers_stand_alone() -> None:
    broken = [
        f"{file}:{line}: {module}"
        for file in FILES
        if room_of(file) == "layers"
        for module, line in imports(file)
        if module.startswith("batchllm.layers")
        and module.split(".")[2:3] != [Path(file).parts[1].removesuffix(".py")]
    ]
    assert not broken


def test_every_library_is_known_to_its_rooms_only() -> None:
    broken = [
        f"{file}:{line}: {module}"
        for file in FILES
        for module, line in imports(file)
        if room_of(file) not in ONLY_IN.get(module.split(".")[0], {room_of(file)})
    ]
    assert not broken


def test_nothing_catches_base_exception() -> None:
    broken = []
    for file in FILES:
        for node in ast.walk(TREES[file]):
            if isinstance(node, ast.ExceptHandler):
                caught = "BaseException" if node.type is None else ast.unparse(node.type)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                caught = ast.unparse(node)
            else:
                continue
            if "BaseException" in caught:
                broken.append(f"{file}:{node.lineno}: {caught}")
    assert not broken


def test_no_file_is_two_rooms_and_no_function_is_long() -> None:
    sizes = {file: len(text.splitlines()) for file, text in TEXTS.items()}
    broken = [f"{file} has {lines} lines" for file, lines in sizes.items() if lines > LONGEST_FILE]
    for file in FILES:
        for function in functions(file):
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > LONGEST_FUNCTION:
                broken.append(f"{file}:{function.lineno}: {function.name} has {length} lines")
    assert not broken


def test_every_module_says_what_it_is() -> None:
    assert not [file for file in FILES if not ast.get_docstring(TREES[file])]


def test_nothing_global_is_mutable() -> None:
    """No `global`, and no container at the top of a module that a function of it changes."""
    broken = []
    for file in FILES:
        top = set[str]()
        for node in TREES[file].body:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                top |= stored(node)
        for function in functions(file):
            own = stored(function) | {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
            for node in ast.walk(function):
                changed = changed_by(node)
                if isinstance(node, ast.Global) or (changed in top and changed not in own):
                    broken.append(
                        f"{file}:{function.lineno}: {function.name} changes {changed or 'a global'}"
                    )
    assert not broken


def stored(tree: ast.AST) -> set[str]:
    """The plain names that are assigned to in a piece of code."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


def changed_by(node: ast.AST) -> str | None:
    """The name whose content a node changes by item or by method, or None."""
    holder: ast.AST | None = None
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        holder = node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        holder = node.func.value
    return holder.id if isinstance(holder, ast.Name) else None


def test_the_main_path_is_a_task_group() -> None:
    assert "create_task_group" in called("mainpath.py")
    assert not [file for file in FILES if called(file) & {"gather", "ensure_future"}]


def test_the_gate_holds_the_window_and_the_rate_limiter() -> None:
    gate = {file for file in FILES if file.startswith("layers/gated/")}
    assert any("anyio.CapacityLimiter" in TEXTS[file] for file in gate)
    classes = {
        (file, node.name) for file in FILES for node in TREES[file].body if isinstance(node, ast.ClassDef)
    }
    assert {name for file, name in classes if file in gate} == {
        "RateLimiter",
        "Gate",
        "Gated",
        "Outage",
        "_Waiting",
    }
    assert {file for file, name in classes if "Limiter" in name} == {"layers/gated/limiter.py"}


def test_every_setting_says_whether_it_is_meaning_operation_or_place() -> None:
    kinds = {field.name: field.metadata.get("kind") for field in fields(Job)}
    assert not [name for name, kind in kinds.items() if kind not in ("meaning", "operation", "place")]
