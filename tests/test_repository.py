"""Files of the repository for people and services around it: they agree with the package and with one another."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import yaml

import fluvial

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_make_help_tells_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    words = ["make", "--no-print-directory", "help"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = dict(line.removeprefix("make ").split(maxsplit=1) for line in told.splitlines())
    assert lines.keys() == set(targets) - {"demo-arflow", "demo-flowar"}, "a target has no ## in the Makefile"


def test_the_workflow_runs_what_make_has_on_pythons_that_the_package_takes():
    steps = [step.get("run", "") for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    made = {target for step in steps for target in re.findall(r"make ([a-z-]+)", step)}
    assert made == {"lint", "test-all", "docs", "notebooks"} and all(f"\n{target}: " in MAKEFILE for target in made)
    pythons = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert f">={pythons[0]}" == PROJECT["requires-python"]


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == fluvial.__version__ and citation["license"] == PROJECT["license"]
    assert f"## [{fluvial.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


def test_forms_ask_for_the_doctors_output_and_hooks_run_the_tools_of_setup():
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    assert (
        "fluvial doctor" in json.dumps(form)
        and "fluvial doctor" in (ROOT / ".github/pull_request_template.md").read_text()
    )
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    local = {
        hook["id"]: hook["entry"].split()[0] for repo in hooks if repo["repo"] == "local" for hook in repo["hooks"]
    }
    lint = re.search(r"^lint: .*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    assert {entry.removeprefix(".venv/bin/") for entry in local.values()} == set(re.findall(r"\$\(BIN\)/(\w+)", lint))
    json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
