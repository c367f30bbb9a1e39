"""The settings of a picture in the playground: as a link, as a command, and as Python. All of them draw the same."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

ROW = 100  # seeds in a row of the plane: seed = x + 100 y
DIGITS = 3  # of a place between seeds
COUNTS = (1, 4, 9, 16, 25, 36, 64)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The settings of a picture. "" and None stand for those of the run."""

    run: str = ""
    """Path of the run below the folder of the studio."""
    x: float = 0.0
    """Place in the plane of seeds; at whole numbers, the seed x + 100 y."""
    y: float = 0.0
    label: str = ""
    """Name or id of the class; "" for all in turn."""
    count: int = 16
    steps: int | None = None
    solver: str = ""
    weight: float | None = None
    """Weight of guidance."""
    low: float = 0.0
    """Times between which guidance acts."""
    high: float = 1.0
    average: str = "ema"
    """The weights: ema, raw, or the length of a power-function average."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", round(max(0.0, self.x), DIGITS))
        object.__setattr__(self, "y", round(max(0.0, self.y), DIGITS))

    @property
    def columns(self) -> int:
        """Images in a row of the picture."""
        return math.ceil(math.sqrt(self.count))

    @property
    def seed(self) -> int | None:
        """The seed at this place; None between seeds."""
        whole = self.x == int(self.x) and self.y == int(self.y)
        return int(self.x) + ROW * int(self.y) if whole else None

    @property
    def seeds(self) -> tuple[int, int, int, int]:
        """The four seeds around this place: the one before it, the next one, and those of the next row."""
        first = math.floor(self.x) + ROW * math.floor(self.y)
        return first, first + 1, first + ROW, first + ROW + 1

    @property
    def at(self) -> tuple[float, float]:
        """The place between the four seeds, from 0 to 1."""
        return round(self.x - math.floor(self.x), DIGITS), round(self.y - math.floor(self.y), DIGITS)


def from_query(query: Mapping[str, str]) -> Scene:
    """The scene of a link. What is no setting, or not of its kind, is left out."""
    scene = Scene()
    for field in fields(Scene):
        if (text := query.get(field.name)) is None:
            continue
        kind = {"count": int, "steps": int}.get(field.name, type(field.default) if field.default is not None else float)
        try:
            value = kind(text)
        except ValueError:
            continue
        if not isinstance(value, float) or math.isfinite(value):
            scene = replace(scene, **{field.name: value})
    scene = scene if scene.count in COUNTS else replace(scene, count=Scene.count)
    far = scene.x > 2**31 or scene.y > 2**31
    return replace(scene, x=0.0, y=0.0) if far else scene


def to_query(scene: Scene) -> dict[str, str]:
    """The settings of a link, without those that are as they are by default."""
    usual = asdict(Scene())
    return {name: f"{value}" for name, value in asdict(scene).items() if value != usual[name]}


def as_command(scene: Scene, folder: Path, out: str = "picture") -> str:
    """The command that draws the picture: grid.png in the folder `out` has its bytes."""
    words = ["fluvial", "walk" if scene.seed is None else "sample", str(folder)]
    if scene.seed is None:
        words += ["--seeds", *map(str, scene.seeds), "--at", *map(_plain, scene.at)]
    else:
        words += ["--seed", str(scene.seed)]
    words += ["--count", str(scene.count), "--columns", str(scene.columns)]
    words += ["--classes", scene.label] if scene.label else []
    words += [] if scene.steps is None else ["--steps", str(scene.steps)]
    words += ["--solver", scene.solver] if scene.solver else []
    words += [] if scene.weight is None else ["--guidance", _plain(scene.weight)]
    if (scene.low, scene.high) != (0, 1):
        words += ["--sample.guidance.interval", _plain(scene.low), _plain(scene.high)]
    words += [] if scene.average == "ema" else ["--average", scene.average]
    return shlex.join([*words, "--out", out])


def as_python(scene: Scene, folder: Path, out: str = "picture") -> str:
    """The lines of Python that draw the picture: grid.png in the folder `out` has its bytes."""
    average = "" if scene.average == "ema" else f", average={_literal(scene.average)}"
    settings = "".join(f", {name}={value!r}" for name, value in given(scene).items())
    interval = (scene.low, scene.high) != (0, 1)
    lines = ["import fluvial"]
    lines += ["from dataclasses import replace"] if interval else []
    lines += ["from fluvial.run.walk import between_seeds"] if scene.seed is None else []
    lines += ["", f"sampler = fluvial.load({str(folder)!r}{average})"]
    if interval:
        weight = "" if scene.weight is None else f", weight={scene.weight!r}"
        lines += [f"guidance = replace(sampler.run.sample.guidance{weight}, interval=({scene.low!r}, {scene.high!r}))"]
        settings = "".join(f", {name}={value!r}" for name, value in given(scene).items() if name != "guidance")
        settings += ", guidance=guidance"
    chosen = f", classes={_class(scene.label)!r}" if scene.label else ""
    if scene.seed is None:
        lines += [f"samples = between_seeds(sampler, {scene.seeds}, {scene.at}, {scene.count}{chosen}{settings})"]
    else:
        lines += [f"samples = sampler.sample({scene.count}{chosen}, seed={scene.seed}{settings})"]
    return "\n".join([*lines, f"samples.save({out!r}, columns={scene.columns})"])


def given(scene: Scene) -> dict[str, Any]:
    """The settings of sampling that the scene has in place of the run's, as `Sampler.sample` takes them."""
    found = {"steps": scene.steps, "solver": scene.solver or None, "guidance": scene.weight}
    return {name: value for name, value in found.items() if value is not None}


def _class(label: str) -> int | str:
    """An id as a number, a name as a text."""
    return int(label) if label.isdecimal() else label


def _plain(value: float) -> str:
    return f"{value:.10g}"


def _literal(average: str) -> str:
    """The average as Python: a name in quotes, a length as a number."""
    try:
        return f"{float(average):g}"
    except ValueError:
        return repr(average)
