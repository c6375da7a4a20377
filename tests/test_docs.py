"""What the documents say is true: README's examples run, docstring examples hold, no file names this machine or a registry."""

import doctest
import importlib
import pathlib
import re
import subprocess

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SOURCES = sorted((ROOT / "jaxnets").rglob("*.py"))
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]


@(pytest.mark.slow if jax.config.jax_disable_jit else lambda test: test)  # an operation at a time they take minutes
@pytest.mark.parametrize("index", range(len(re.findall("```python\n", README))))
def test_readme_examples_run(index):
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[index]
    exec(compile(code, f"README.md, example {index + 1}", "exec"), {})


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_readme_shows_only_pictures_that_exist():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_no_file_names_this_machine_or_a_package_registry():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT)
    names = listed.stdout.split() if listed.returncode == 0 else []
    forbidden = re.compile("|".join(["/" + "root/", "/" + "work/", "py" + "pi.org", "python" + "hosted", "npm" + "js"]))
    for name in names:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yml", ".sh", ""} and path.is_file():
            assert not forbidden.search(path.read_text()), name
