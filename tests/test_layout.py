"""The layout: folders side by side in a checkout, one package in a wheel, imports that run one way."""

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

import dispatch_rl

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("configs", "envs", "kernels", "policies")
"""Folders that stand beside ``dispatch_rl/`` in a checkout and inside it in a wheel."""

COMMANDS = {
    "train",
    "evaluate",
    "compare",
    "record",
    "profile",
    "calibrate",
    "export",
    "generate",
    "doctor",
    "pocket.__main__",
    "pocket.card",
}
BASE = {"errors", "config"}
MAY_IMPORT = {
    "kernels": {"kernels"},
    "errors": set(),
    "arguments": {"errors"},
    "endings": set(),
    "cli": {"errors", "arguments", "endings"},
    "config": {"errors", "decoding", "config"},
    "decoding": {*BASE, "hub", "kernels", "decoding"},
    "policies": {*BASE, "kernels", "decoding", "policies"},
    "pocket": {*BASE, "kernels", "decoding", "pocket"},
    "progress": set(),
    "hub": set(),
    "runs": {"errors"},
    "tracking": {*BASE, "runs", "tracking"},
    "prompt_sources": {*BASE, "hub"},
    "prompt_files": {*BASE, "prompt_sources", "progress"},
    "prompts": {*BASE, "decoding", "pocket", "prompt_files"},
    "replay": {*BASE, "kernels", "decoding", "policies", "prompts", "progress", "runs", "replay"},
    "envs": {*BASE, "kernels", "decoding", "policies", "prompts", "replay", "cli", "envs"},
    "runtime": {*BASE, "decoding", "policies", "replay", "runs", "envs", "runtime"},
}
"""The layers below the commands. Any other module of ``dispatch_rl/`` belongs to the commands and imports what it likes."""


def python_files(*folders: str) -> Iterator[Path]:
    """Yield our Python files below ``folders``."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the dotted name within ``dispatch_rl``; empty for its own ``__init__``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "dispatch_rl" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files("dispatch_rl", "envs", "kernels", "policies")}


def imports(path: Path) -> Iterator[str]:
    """Yield what ``path`` imports of ours, within functions too, as dotted names within ``dispatch_rl``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        ours = [name.removeprefix("dispatch_rl.") for name in names if name.startswith("dispatch_rl.")]
        # ``from dispatch_rl.errors import UserError`` names the module ``errors``.
        yield from (name if name in MODULES else name.rpartition(".")[0] for name in ours)


def layer(module: str) -> str:
    """Return the layer of a module."""
    first = module.partition(".")[0]
    return first if first in MAY_IMPORT and module not in COMMANDS else "commands"


def run_python(code: str, cwd: Path, *search: Path) -> str:
    """Run ``code`` in a new interpreter that finds the checkout last and return what it prints."""
    path = os.pathsep.join(str(folder) for folder in (*search, ROOT))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def setuptools_table() -> dict[str, Any]:
    """Return ``[tool.setuptools]`` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return table


def test_kernels_folder_never_shadows_huggingface_kernels(tmp_path: Path) -> None:
    """From the repository's root, ``import kernels`` finds an installed package of that name, not our folder."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    assert run_python("import kernels; print(kernels.__file__)", ROOT, tmp_path).startswith(str(tmp_path))


def test_a_qwen2_model_can_be_built_from_the_root() -> None:
    """Standing in the repository does not break transformers, before or after our kernels are imported."""
    code = (
        "import dispatch_rl.kernels.entropy\n"
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        "sizes = dict(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)\n"
        "print(type(Qwen2ForCausalLM(Qwen2Config(**sizes, intermediate_size=8))).__name__)"
    )
    assert run_python(code, ROOT) == "Qwen2ForCausalLM"


def test_subpackages_resolve_from_any_directory(tmp_path: Path) -> None:
    """Sub-packages are found wherever Python is started, those beside the package too."""
    code = (
        "import dispatch_rl.envs, dispatch_rl.policies, dispatch_rl.decoding, dispatch_rl.pocket\n"
        "import dispatch_rl.kernels.entropy as module\n"
        "print(module.__name__, module.__file__)"
    )
    assert run_python(code, tmp_path) == f"dispatch_rl.kernels.entropy {ROOT / 'kernels' / 'entropy.py'}"


def test_the_tests_import_this_checkout() -> None:
    """What is tested is what lies beside the tests, not something installed."""
    assert Path(dispatch_rl.__file__).resolve().parent == ROOT / "dispatch_rl"


@pytest.mark.parametrize("module", ["dispatch_rl", "dispatch_rl.config", "dispatch_rl.cli", "dispatch_rl.pocket.recipe"])
def test_light_modules_stay_light(module: str, tmp_path: Path) -> None:
    """Configuration is read, and ``--help`` shown, without loading torch or transformers."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
    assert run_python(code, tmp_path) == "[]"


def test_the_wheel_holds_every_package() -> None:
    """Every folder with Python files is a listed package, and every listed one but the configurations has some."""
    found = {f"dispatch_rl.{module_name(path.parent / '__init__.py')}".rstrip(".") for path in MODULES.values()}
    assert {*found, "dispatch_rl.configs"} == set(setuptools_table()["packages"])


def test_the_wheel_nests_the_four_folders() -> None:
    """The folders beside the package are mapped into it, so that no top-level ``kernels`` is installed."""
    assert setuptools_table()["package-dir"] == {f"dispatch_rl.{folder}": folder for folder in BESIDE}
    assert all((ROOT / folder).is_dir() for folder in BESIDE)


def test_the_wheel_holds_every_data_file() -> None:
    """The patterns for package data match all files that are no Python: weights, configurations, the typing marker.

    ``kernels/README.md`` is for those who read the checkout.
    """
    folders = {"dispatch_rl": "dispatch_rl", "dispatch_rl.configs": "configs", "dispatch_rl.pocket": "dispatch_rl/pocket"}
    packed = {
        path
        for package, patterns in setuptools_table()["package-data"].items()
        for pattern in patterns
        for path in (ROOT / folders[package]).glob(pattern)
    }
    present = {path for folder in ("dispatch_rl", *BESIDE) for path in (ROOT / folder).rglob("*") if path.is_file()}
    left_out = {ROOT / "kernels" / "README.md"}
    assert {path for path in present - packed - left_out if path.suffix not in {".py", ".pyc"}} == set()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_one_way(module: str) -> None:
    """Commands see all; environments see policies; policies see decoding; decoding sees kernels; kernels see nothing of ours."""
    allowed = MAY_IMPORT.get(layer(module))
    for imported in imports(MODULES[module]):
        # The decoding loop calls a policy, so it names the protocol; it knows no policy.
        if allowed is not None and (module, imported) != ("decoding.loop", "policies.base"):
            assert layer(imported) in allowed, f"{module} ({layer(module)}) imports {imported} ({layer(imported)})"


def test_imports_have_no_cycle() -> None:
    """No module needs itself, however far around; imports within functions count too."""
    graph = {module: set(imports(path)) - {module} for module, path in MODULES.items()}
    assert set().union(*graph.values()) <= set(graph)
    assert list(TopologicalSorter(graph).static_order())


def test_no_file_is_long() -> None:
    """A file that passes 300 lines wants to be two."""
    files = python_files("dispatch_rl", "envs", "kernels", "policies", "tests")
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}
