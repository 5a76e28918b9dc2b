"""The rules every file of the project keeps."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "jvlmm").rglob("*.py"))
SOURCES = sorted(path for folder in ("jvlmm", "configs", "launch", "tests") for path in (ROOT / folder).rglob("*.py"))
LAUNCHERS = sorted(
    path for path in (ROOT / "launch").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
)
TEXTS = [*SOURCES, *LAUNCHERS, *ROOT.glob("*.md"), ROOT / ".ci" / "run"]
# Written with brackets, so that this file keeps its own rule.
FORBIDDEN = re.compile(r"TO[D]O|FIX[M]E|X[X]X|flax\.n[n]x|trust_remote_code[=]True|pickle\.l[o]ad|/(?:wor[k]|roo[t])/")
NOT_IMPORTED = {
    "importlib_resources": "tensorflow-datasets imports it without declaring it",
    "jinja2": "transformers renders chat templates with it",
}
WITH_JAX = {"jaxlib", "ml-dtypes"}  # jax cannot be installed without them


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / name), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def third_party_imports(path: Path) -> set[str]:
    """Top-level names of the packages a file imports anywhere, the standard library and jvlmm left out."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"jvlmm", "__future__"}


def declared(requirements: list[str]) -> set[str]:
    return {normalise(re.split(r"[\[<>=!~; ]", text, maxsplit=1)[0]) for text in requirements}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(modules: set[str]) -> set[str]:
    known = importlib.metadata.packages_distributions()
    return {normalise(known.get(module, [module])[0]) for module in modules}


def test_every_module_says_what_it_is():
    silent = [relative(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_no_module_has_a_name_that_says_nothing():
    vague = {"utils", "util", "common", "helpers", "helper", "core", "misc"}
    assert not [relative(path) for path in MODULES if vague & {path.stem, path.parent.name}]


def test_no_forbidden_words():
    found = [
        f"{relative(path)}:{number} {match.group()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if (match := FORBIDDEN.search(line))
    ]
    assert not found


def test_ruff_passes():
    for arguments in (["check"], ["format", "--check"]):
        done = tool("ruff", *arguments, "--no-cache", ".")
        assert done.returncode == 0, done.stdout + done.stderr


def test_packages_import_only_what_lies_below_them():
    done = tool("lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = declared(project["dependencies"])
    imported = distributions({name for path in MODULES for name in third_party_imports(path)})
    optional = declared(extras["wandb"]) | {
        "torch",
        *WITH_JAX,
    }  # the benchmarks measure against PyTorch where it is installed
    assert imported - needed - optional == set(), "imported and not declared"
    bound_elsewhere = {normalise(name) for name in NOT_IMPORTED}
    assert needed - imported - bound_elsewhere == set(), "declared and not imported"


def test_tests_import_only_what_the_test_extra_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    available = declared(project["dependencies"] + extras["test-without-torch"]) | {"torch", *WITH_JAX}
    imported = {name for path in (ROOT / "tests").rglob("*.py") for name in third_party_imports(path)}
    local = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    assert distributions(imported - local) - available == set()


def test_import_is_cheap_and_leaves_jax_alone():
    """Best of three, because a loaded machine can make any one start slow."""
    best = float("inf")
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import jvlmm"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        rows = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
        assert "jax" not in {row[2].strip().partition(".")[0] for row in rows}
        best = min(best, next(int(row[1]) for row in rows if row[2].strip() == "jvlmm"))
    assert best < 500_000  # microseconds
