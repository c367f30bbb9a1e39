"""README.md and docs/: links lead somewhere, commands and their options exist, and the Python that they show runs."""

import re
import shlex
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fluvial
from fluvial import recipes
from fluvial.cli import COMMANDS, main
from fluvial.run.folder import RunFolder, record_of
from fluvial.tools.plan import draft, fitting, network, pace

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|\s)fluvial (?!=)(\S.*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
FOREIGN = {"--max-restarts", "--nproc-per-node", "--nnodes"}  # options of torchrun
# made shorter in the Python of the pages
SHORTER = {
    "count=1000": "count=20",
    "minutes=30": "steps=2, size='small', settings={'sample.steps': 2, 'train.validate_every': 0}",
    "minutes=5)": "trajectories=20, updates=2)",
}
ABOUT_PLUGINS = "add-a-method.md"  # its recipes are those of its examples


@cache
def blocks(path: Path, language: str) -> tuple[str, ...]:
    return tuple(text for kind, text in BLOCK.findall(path.read_text()) if kind == language)


def spans(path: Path) -> list[str]:
    return SPAN.findall(BLOCK.sub("", path.read_text()))


def commands(path: Path) -> list[list[str]]:
    """The words after `fluvial` of every command in the code blocks without a language."""
    lines = [line for text in blocks(path, "") for line in text.splitlines()]
    found = [COMMAND.search(line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files(path):
    links = [link for link in LINK.findall(path.read_text()) if not re.match(r"https?:|#", link)]
    assert [link for link in links if not (path.parent / link.partition("#")[0]).exists()] == []


def test_every_page_is_listed_on_github_and_on_the_site():
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for folder in (docs, docs / "results") for path in folder.glob("*.md")}
    pages -= {"README.md", "index.md"}
    assert pages <= set(LINK.findall((docs / "README.md").read_text()))
    trees = "\n".join(
        re.findall(r"^:::\{toctree\}\n(.*?)^:::$", (docs / "index.md").read_text(), re.MULTILINE | re.DOTALL)
    )
    assert pages == {f"{name}.md" for name in re.findall(r"^([a-z].*)$", trees, re.MULTILINE)} - {
        "reference/fluvial.md"
    }


@cache
def help_of(*words: str) -> str:
    """The whole help of a command, after the short one if it has one."""
    out = StringIO()
    with redirect_stdout(out):
        assert main([*words, "--help"]) == main([*words, "--help", "all"]) == 0, words
    return out.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for a recipe that holds the settings of such a run, and no weights: enough for help."""
    root = tmp_path_factory.mktemp("runs")

    @cache
    def make(recipe: str) -> str:
        folder = RunFolder(root / recipe)
        folder.path.mkdir()
        folder.write(record_of(recipes.get(recipe), recipe))
        return str(folder)

    return make


def recipe_like(run: str) -> str:
    """The recipe that a run folder in the documents, such as runs/digits-flowar, is most likely of."""
    name = Path(run).name
    return name if name in recipes.RECIPES else "digits-flowar" if "flowar" in name else "digits-arflow"


def subject(words: list[str], folders) -> list[str]:
    """The command with its positional argument, such that its help can be asked for."""
    command, *rest = words
    place = next((word for word in rest if not word.startswith("-")), "")
    match command:
        case "data":
            return [] if place == "verify" else ["data", place]
        case "bench":
            assert rest[1] in recipes.RECIPES, words
            return ["bench", *rest[:2]]
        case "recipes":
            return []
        case "train" if Path(place).suffix in (".yaml", ".py"):
            return ["train", str(ROOT / place)]
        case "train" if place.startswith("data/"):  # images, of which help looks at nothing
            return ["train", str(ROOT / "docs")]
        case "train" if not place.startswith("runs/"):
            assert place in recipes.RECIPES, words
            return ["train", place]
        case "compare":
            return ["compare", place]
        case "runs" if place == "clean":
            return ["runs", "clean"]
        case "train" | "sample" | "score" if place.startswith("runs/"):
            solver = next((rest.index(name) for name in ("--sample.solver", "--solver") if name in rest), len(rest))
            return [command, folders(recipe_like(place)), *rest[solver : solver + 2]]
        case "score":
            return ["score", place]
    return [command]  # its options do not depend on what it is given


def missing(options: list[str], text: str) -> list[str]:
    there = set(OPTION.findall(text))
    return [option for option in options if option.replace("_", "-") not in there]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_their_options_exist(path, folders):
    shared = help_of()
    for words in commands(path):
        if path.name == ABOUT_PLUGINS and "--plugin" in words:
            assert words[0] in COMMANDS and (ROOT / words[words.index("--plugin") + 1]).is_file()
            continue
        if words[0].startswith("--"):  # of no command
            assert missing(words[:1], shared) == [], words
            continue
        assert words[0] in COMMANDS, words
        asked = subject(words, folders)
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert missing(options, shared + (help_of(*asked) if asked else "")) == [], words


def test_options_in_the_text_exist(folders):
    """An option in running text is one of some command, and a command in it is known."""
    text = help_of()
    for recipe in ("digits-arflow", "digits-flowar", "imagenet256-arflow-xl2", "imagenet256-flowar-l"):
        folder = folders(recipe)
        text += help_of("train", recipe) + help_of("sample", folder) + help_of("score", folder)
    for solver in ("dopri5", "euler-maruyama"):
        text += help_of("sample", folders("digits-arflow"), "--sample.solver", solver)
    for words in (["bench", "train", "digits-sit"], ["data", "inspect"], ["compare", "digits"], ["runs", "clean"]):
        text += help_of(*words)
    others = ("import", "export", "config", "ema", "encode", "plot", "doctor", "runs", "report", "studio")
    for command in ("edit", "walk", "likelihood", "guide", "distill", "study", *others):
        text += help_of(command)
    for path in PAGES:
        for span in spans(path):
            if span.startswith("--") or COMMAND.search(span):
                assert missing([o for o in OPTION.findall(span) if o not in FOREIGN], text) == [], (path.name, span)
            if found := COMMAND.search(span):
                assert found[1].split()[0] in {*COMMANDS, "COMMAND"}, (path.name, span)


def test_the_rules_for_own_images_are_those_of_the_code():
    (few, narrow), (many, wide) = network.LADDER[0], network.LADDER[-1]
    size = network.SIZES
    rules = [
        f"**The network.** {network.TOKENS_A_PARAMETER} tokens a parameter",
        f"{few} blocks of width {narrow} to {many} of width {wide}",
        f"small is {size['small'][0]} blocks of width {size['small'][1]}, base {size['base'][0]} of {size['base'][1]}",
        f"{network.RATE} x (128 / width)²",
        "a power of two from {} to {} images, for at least {:,} steps".format(*fitting.BATCHES, fitting.STEPS),
        f"stay below {fitting.MEMORY:.0%} of".replace("%", " %"),
        f"about {pace.PICTURES:.0%} of the time. A run of less than {pace.EARLY / 60:.0f} minutes".replace("%", " %"),
        f"about {pace.FIRST_PICTURE} seconds",
        f"2 to {pace.SAVES} validations in about {pace.VALIDATIONS:.0%} of the time".replace("%", " %"),
        f"and at most {draft.PIXELS};",
        f"at most {draft.LATENT_PIXELS['cpu']} on a CPU, {draft.LATENT_PIXELS['cuda']} on CUDA",
        f"at most {draft.TOKENS['cpu']} an image, {draft.TOKENS['cuda']} on CUDA",
        f"no more than {network.NUMBERS} numbers",
        f"for {fitting.COMPILED / 60:.0f} minutes of training or more",
        f"otherwise {draft.VALIDATION:.0%} of".replace("%", " %"),
        f"asymmetry is below {draft.ASYMMETRY}",
    ]
    text = (ROOT / "docs" / "own-images.md").read_text()
    assert [rule for rule in rules if rule not in text] == []


def draw_photos(folder: str) -> None:
    """Writes 40 random images of 8 x 8 pixels, in folders of two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = Path(folder, ("cat", "dog")[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_the_readme_has_fewer_than_900_words():
    assert len((ROOT / "README.md").read_text().split()) < 900


@pytest.mark.parametrize("name", ["README.md", "own-images.md", "python.md", "fine-tuning.md", "configuration.md"])
def test_python_of_the_pages_runs(name, tmp_path, monkeypatch):
    path = ROOT / name if name == "README.md" else ROOT / "docs" / name
    small = recipes.smoke(recipes.get("digits-arflow"))
    small = replace(small, train=replace(small.train, steps=2), sample=replace(small.sample, steps=2))
    monkeypatch.setattr(recipes, "get", lambda name: small)
    monkeypatch.chdir(tmp_path)
    if name == "fine-tuning.md":
        fluvial.train(small, "runs/digits-arflow")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    draw_photos("data/photos")
    known: dict[str, object] = {}
    for code in blocks(path, "python"):
        for shown, short in SHORTER.items():
            code = code.replace(shown, short)
        exec(compile(code, str(path), "exec"), known)
    assert (tmp_path / "runs").is_dir() or name == "configuration.md"
