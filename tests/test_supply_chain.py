"""What is installed is pinned and hashed, and no file that is read can run code."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
# What runs whatever lies in a file, or puts files where their names say.
UNSAFE_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
UNSAFE_CALLS = (
    "eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load",
    "shutil.unpack_archive",
)  # fmt: skip


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file):
    """Returns {package: version}, without packages of Windows alone."""
    lines = (ROOT / file).read_text().splitlines()
    text = "\n".join(line for line in lines if "win32'" not in line or "!=" in line)
    return {normal(name): version for name, version in PINNED.findall(text)}


def test_both_files_pin_the_same():
    locked, pinned = pins("requirements.lock"), pins("constraints.txt")
    assert len(locked) > 40
    assert locked == {name: pinned.get(name) for name in locked}


def test_every_dependency_is_locked_with_hashes():
    locked = pins("requirements.lock")
    for wanted in PROJECT["project"]["dependencies"]:
        assert normal(re.split(r"[<>=!\[ ;]", wanted)[0]) in locked, wanted
    assert set(pins("requirements-build.lock")) == {"setuptools"}


@pytest.mark.parametrize("file", ["requirements.lock", "requirements-build.lock"])
def test_a_lock_has_hashes_alone(file):
    text = (ROOT / file).read_text()
    assert "://" not in text and "index" not in re.sub(r"^#.*", "", text, flags=re.MULTILINE)
    entries = re.split(r"\n(?=[A-Za-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    for entry in entries:
        first, *hashes = entry.strip().split(" \\\n    ")
        assert PINNED.match(first), entry
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), entry


def test_wheels_of_every_platform_are_locked():
    # jaxlib has a wheel for each Python and platform; one alone would leave others out.
    text = (ROOT / "requirements.lock").read_text()
    (entry,) = re.findall(r"^jaxlib==.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    assert entry.count("--hash=") > 12


def unsafe(source):
    """Returns what of a source file can run or place what an untrusted file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module] * (node.module.split(".")[0] in UNSAFE_MODULES)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in UNSAFE_CALLS or name.endswith(".extractall"):
            found.append(name)
        if given.get("allow_pickle", "False") != "False":
            found.append(f"{name}(allow_pickle)")
        if given.get("shell", "False") != "False":
            found.append(f"{name}(shell)")
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append(name)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "eval(x)", "yaml.load(f)", "t.extractall(d)",
        "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=flag)", "torch.load(f)",
        "torch.load(f, weights_only=False)", "subprocess.run(c, shell=True)", "os.system(c)",
    ],
)  # fmt: skip
def test_unsafe_readers_are_found(source):
    assert unsafe(source)


@pytest.mark.parametrize(
    "source",
    ["np.load(f, allow_pickle=False)", "torch.load(f, weights_only=True)", "yaml.safe_load(f)",
     "model.eval()", "re.compile(x)", "np.load(f)"],
)  # fmt: skip
def test_safe_readers_are_not(source):
    assert not unsafe(source)


def test_nothing_that_is_read_can_run_code():
    files = [path for room in ("medinit_jax", "configs") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 150
    found = {str(path): names for path in files if (names := unsafe(path.read_text()))}
    assert not found
