"""The house: which rooms there are, which floor knows which, and what the package's face shows."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hardtrain

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hardtrain"
FLOORS = (
    ("strategies", "errors", "_version"),
    ("checks", "files", "statistics"),
    ("data", "goals", "networks"),
    ("training",),
    ("runs",),
    ("report",),
    ("papers",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(path):
    """The modules of hardtrain that a file imports; ``hardtrain`` itself for the face."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in below}
    return {name for name in found if name.split(".")[0] == "hardtrain"}


def room(module):
    return module.split(".")[1]


ARROWS = {(module, other) for module, path in MODULES.items() for other in imports(path)}


def test_every_module_lies_in_a_room():
    assert {room(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_no_import_points_upwards(name):
    above = {
        (module, other)
        for module, other in ARROWS
        if room(module) == name and FLOOR[room(other)] > FLOOR[name]
    }
    assert above == set()


def test_no_import_goes_through_the_face():
    assert {module for module, other in ARROWS if other == "hardtrain"} == set()


def test_rooms_of_one_floor_do_not_import_each_other_in_a_circle():
    between = {(room(a), room(b)) for a, b in ARROWS if room(a) != room(b)}
    assert {pair for pair in between if pair[::-1] in between} == set()


def test_modules_do_not_import_each_other_in_a_circle():
    remaining = dict(ARROWS_FROM := {module: imports(MODULES[module]) for module in MODULES})
    assert ARROWS_FROM
    while remaining:
        free = [m for m, others in remaining.items() if not (others & set(remaining)) - {m}]
        assert free, sorted(remaining)
        for module in free:
            del remaining[module]


def test_a_paper_knows_no_other_paper():
    def paper(module):
        return module.split(".")[2] if re.match(r"hardtrain\.papers\.\w+\.", module) else ""

    crossing = {(a, b) for a, b in ARROWS if paper(a) and paper(b) and paper(a) != paper(b)}
    assert crossing == set()


def test_strategies_import_nothing_else_of_the_package():
    assert {other for module, other in ARROWS if room(module) == "strategies"} <= {
        other for other in MODULES if room(other) == "strategies"
    }


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_file_is_too_long_to_be_read(path):
    assert len(path.read_text().splitlines()) <= 420


def drawing():
    """The rooms from the top floor down, each with the rooms that it imports."""
    lines = []
    for rooms in reversed(FLOORS):
        for name in rooms:
            below = sorted({room(b) for a, b in ARROWS if room(a) == name} - {name})
            lines.append(f"{name} -> {', '.join(below)}" if below else name)
    return "\n".join(line for line in lines if line != "_version")


def test_the_drawing_in_contributing_is_the_house():
    assert drawing() in (ROOT / "CONTRIBUTING.md").read_text()


# --- the face ------------------------------------------------------------------------------------

DESIGNED = """
trim TrimmedLoss trimmed_backward HardBatchSampler GradientNoise mmd class_conditional_mmd
PredictionHistory prediction_deviation threshold_closeness difficulty easiness
sampling_probabilities sample_weights WeightedBatchSampler predictive_entropy mutual_information
variation_ratio error_count select_subset PruningBatchSampler select_reducible SelectiveBackprop
RankBatchSampler load_dataset ImageDataset build_network Run RunStore
run_missing mean_interval paired_difference convergence_epoch steps_to_goal verdict HardtrainError
ParameterError DataError RecordError StoreError DivergedError
""".split()


@pytest.mark.parametrize("name", DESIGNED)
def test_the_face_shows_each_public_name(name):
    assert name in hardtrain.__all__
    assert getattr(hardtrain, name).__name__ == name
    assert name in dir(hardtrain)


def test_the_face_refuses_other_names():
    with pytest.raises(AttributeError, match="'hardtrain' has no attribute 'trimm'"):
        _ = hardtrain.trimm
    with pytest.raises(ImportError, match="cannot import name 'trimm'"):
        from hardtrain import trimm  # noqa: F401
    assert not hasattr(hardtrain, "trimm")


def test_the_face_names_the_nearest():
    with pytest.raises(AttributeError, match="no attribute 'trimmedLoss'; did you mean 'TrimmedL"):
        _ = hardtrain.trimmedLoss
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'$"):
        _ = hardtrain.zzz


def test_the_face_says_what_each_strategy_is():
    for name in hardtrain.__all__:
        if hardtrain._HOMES[name].startswith("hardtrain.strategies."):
            assert re.search(rf"\b{name}\b", hardtrain.__doc__), name


def test_importing_the_face_loads_what_torch_brings_and_nothing_more():
    code = (
        "import sys, torch; before = set(sys.modules); import hardtrain; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    # -P: the package that is installed or on PYTHONPATH, wherever the tests are run
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert shown.stdout.strip() == "['hardtrain']", shown.stderr


def public_callables():
    for name in hardtrain.__all__:
        value = getattr(hardtrain, name)
        yield name, value if inspect.isfunction(value) else value.__init__
        if inspect.isclass(value):
            for member, function in vars(value).items():
                if not member.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{member}", function


CALLABLES = {
    name: function
    for name, function in public_callables()
    if getattr(function, "__module__", "").startswith("hardtrain")
}


@pytest.mark.parametrize("name", CALLABLES)
def test_public_names_are_annotated_completely(name):
    signature = inspect.signature(CALLABLES[name])
    bare = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty and parameter.name != "self"
    ]
    assert bare == []
    if not name.endswith("__init__") and inspect.isfunction(getattr(hardtrain, name, None)):
        assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", hardtrain.__all__)
def test_public_names_have_docstrings(name):
    assert getattr(hardtrain, name).__doc__
