"""Draws the data flow of each method in training and in sampling, as docs/drawings/*.svg: python docs/drawings.py"""

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

HERE = Path(__file__).parent / "drawings"
WIDTH = 700  # pixels; y runs downwards
PIXEL = 0.75  # of a point
INK, QUIET, LINE, EDGE = "#1f2328", "#59636e", "#8b949e", "#d0d7de"
ACCENT, TINT = "#1a5fb4", "#e9f1fb"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.monospace": ["SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono"],
    "svg.fonttype": "none",
    "svg.hashsalt": "fluvial",
}
GREYS = 10  # levels that an image is drawn in
# five threes of the digits of scikit-learn, a line of 8 pixels from 0 to 16 for each row
THREES = (
    "029fe930 08d89g80 0006ef30 000be200 0002fb00 00002f40 0156dg60 02ccdb00",
    "018cfe40 03b88cc0 00002d70 0002fc10 0000d500 00009d00 0078ef00 00efb200",
    "00ege600 007agg30 0005gg10 0002g800 0000cd10 00004g70 0059eg70 00dgga10",
    "01afb100 0388bc00 0005ef10 000bf200 0004f200 0000ca00 0034ag10 00dgfa00",
    "03gge710 0199fg40 0007gc10 0009g200 0003f700 00009f00 01aagg30 02dgc500",
)

Image = list[list[float]]
Point = tuple[float, float]


def digit(text: str) -> Image:
    """An image in [-1, 1]."""
    return [[int(pixel, 17) / 8 - 1 for pixel in row] for row in text.split()]


def noise(side: int, seed: int) -> Image:
    """Standard normal pixels."""
    rng, normal = random.Random(seed), NormalDist()
    return [[normal.inv_cdf(rng.random()) for _ in range(side)] for _ in range(side)]


def mixed(x0: Image, x1: Image, t: float) -> Image:
    """The point t x1 + (1 - t) x0."""
    return [[t * b + (1 - t) * a for a, b in zip(*rows, strict=True)] for rows in zip(x0, x1, strict=True)]


def pooled(image: Image, side: int) -> Image:
    """The means of blocks: a map with this many rows and columns."""
    k = len(image) // side
    return [
        [sum(image[r][c] for r in range(i * k, i * k + k) for c in range(j * k, j * k + k)) / k**2 for j in range(side)]
        for i in range(side)
    ]


def upsampled(image: Image) -> Image:
    """The map with twice as many rows and columns, each pixel between the nearest ones."""
    n = len(image)

    def at(i: int) -> list[tuple[float, int]]:
        near, far = i // 2, min(max(i // 2 + (1 if i % 2 else -1), 0), n - 1)
        return [(0.75, near), (0.25, far)]

    return [[sum(a * b * image[r][c] for a, r in at(i) for b, c in at(j)) for j in range(2 * n)] for i in range(2 * n)]


def canvas(height: float) -> Axes:
    """Axes over a whole white figure, with pixels as units."""
    figure = Figure(figsize=(WIDTH * PIXEL / 72, height * PIXEL / 72), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def tile(axes: Axes, centre: Point, side: float, image: Image) -> None:
    """An image as squares, dark for 1 and white for -1."""
    left, top, cell = centre[0] - side / 2, centre[1] - side / 2, side / len(image)
    levels: dict[int, list[Point]] = {}
    for i, row in enumerate(image):
        for j, value in enumerate(row):
            levels.setdefault(round(GREYS * min(max((value + 1) / 2, 0), 1)), []).append(
                (left + j * cell, top + i * cell)
            )
    for level, corners in sorted(levels.items()):
        squares = [Outline.unit_rectangle().transformed(_placed(corner, cell)) for corner in corners]
        grey = 1 - 0.85 * level / GREYS
        face = (grey, grey, grey)
        _add(axes, PathPatch(Outline.make_compound_path(*squares), facecolor=face, edgecolor=face, linewidth=0.3))
    _add(axes, Rectangle((left, top), side, side, facecolor="none", edgecolor=LINE, linewidth=0.75))


def _placed(corner: Point, side: float) -> Affine2D:
    return Affine2D().scale(side).translate(*corner)


def box(axes: Axes, centre: Point, size: Point, *, face: str = "white", edge: str = ACCENT) -> None:
    """A rectangle with round corners."""
    x, y, (w, h) = centre[0] - size[0] / 2, centre[1] - size[1] / 2, size
    shape = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=5", mutation_aspect=1)
    shape.set(facecolor=face, edgecolor=edge, linewidth=0.9)
    _add(axes, shape)


def arrow(axes: Axes, *points: Point, colour: str = LINE, width: float = 1.1) -> None:
    """A line through the points with a head at the last."""
    (x0, y0), (x, y) = points[-2:]
    length = max(abs(x - x0), abs(y - y0))
    dx, dy = (x - x0) / length, (y - y0) / length
    line(axes, *points[:-1], (x - 5 * dx, y - 5 * dy), colour=colour, width=width)
    base = x - 7 * dx, y - 7 * dy
    head = [(x, y), (base[0] - 3.5 * dy, base[1] + 3.5 * dx), (base[0] + 3.5 * dy, base[1] - 3.5 * dx)]
    _add(axes, Polygon(head, closed=True, facecolor=colour, edgecolor="none"))


def line(axes: Axes, *points: Point, colour: str = LINE, width: float = 1.1) -> None:
    """A line through the points."""
    _add(axes, PathPatch(Outline(points), facecolor="none", edgecolor=colour, linewidth=width, joinstyle="round"))


def text(
    axes: Axes, at: Point, words: str, *, size: float = 13, colour: str = INK, align: str = "center", bold: bool = False
) -> None:
    """A line of text on this baseline."""
    weight = "bold" if bold else "normal"
    axes.text(*at, words, size=size * PIXEL, color=colour, ha=align, va="baseline", weight=weight)


def code(axes: Axes, at: Point, words: str, *, size: float = 12, colour: str = INK, align: str = "center") -> None:
    """A formula or a shape on this baseline."""
    axes.text(*at, words, size=size * PIXEL, color=colour, ha=align, va="baseline", family="monospace")


def title(axes: Axes, y: float, words: str, about: str) -> None:
    """The heading of a half of the drawing."""
    text(axes, (16, y), words, size=15, align="left", bold=True)
    text(axes, (100, y), about, colour=QUIET, align="left")


def _add(axes: Axes, shape: Patch) -> None:
    shape.set_clip_on(False)
    axes.add_patch(shape)


def sit() -> Axes:
    """SiT: one image at one time, and a trajectory."""
    axes = canvas(462)
    x0, x1, t = noise(8, 1), digit(THREES[0]), 0.55
    title(axes, 30, "Training", "one image at one time t")
    for y, image, name in ((80, x1, "x1, data"), (196, x0, "x0, noise")):
        tile(axes, (62, y), 60, image)
        text(axes, (62, y + 48), name)
        line(axes, (96, y), (148, y))
    code(axes, (62, 262), "(b, c, h, w)", colour=QUIET)
    line(axes, (148, 80), (148, 222))
    arrow(axes, (148, 110), (212, 110))
    tile(axes, (246, 110), 60, mixed(x0, x1, t))
    code(axes, (246, 158), "x_t = t x1 + (1 - t) x0")
    arrow(axes, (280, 110), (336, 110))
    box(axes, (400, 110), (124, 62), face=ACCENT)
    text(axes, (400, 107), "SiT", size=15, colour="white", bold=True)
    text(axes, (400, 126), "adaLN-Zero blocks", size=12, colour="white")
    code(axes, (400, 56), "t (b,), labels (b,)")
    arrow(axes, (400, 62), (400, 78))
    arrow(axes, (464, 110), (524, 110))
    tile(axes, (558, 110), 60, velocity(x0, x1, 0.25))
    code(axes, (558, 158), "v (b, c, h, w)")
    arrow(axes, (148, 222), (524, 222))
    tile(axes, (558, 222), 60, velocity(x0, x1, 0))
    code(axes, (558, 270), "u = x1 - x0")
    arrow(axes, (592, 110), (648, 110), (648, 144))
    arrow(axes, (592, 222), (648, 222), (648, 188))
    code(axes, (648, 163), "(v - u)²")
    code(axes, (648, 181), "(b, 1)", colour=QUIET)
    title(axes, 316, "Sampling", "one trajectory: every step of the solver evaluates the network")
    for i in range(5):
        x = 52 + 149 * i
        tile(axes, (x, 368), 60, mixed(x0, x1, i / 4))
        code(axes, (x, 416), f"t = {i / 4:g}")
        if i < 4:
            line(axes, (x + 34, 368), (x + 54, 368))
            box(axes, (x + 75, 368), (42, 26), face=ACCENT)
            text(axes, (x + 75, 372.5), "SiT", colour="white", bold=True)
            arrow(axes, (x + 96, 368), (x + 115, 368))
            code(axes, (x + 75, 398), "x + h v", colour=QUIET)
    note(axes, 446, "With guidance, v is made of two evaluations: one with the label, one with the null label.")
    return axes


def velocity(x0: Image, x1: Image, error: float) -> Image:
    """The velocity x1 - x0, brought into the range of an image, and off by an error."""
    off = noise(len(x0), 9)
    rows = zip(x0, x1, off, strict=True)
    return [[0.4 * (b - a) + error * e for a, b, e in zip(*row, strict=True)] for row in rows]


def arflow() -> Axes:
    """ARFlow: a sequence of images, and a trajectory as a sequence."""
    axes = canvas(560)
    columns, times = [182 + 116 * i for i in range(5)], (0.1, 0.35, 0.5, 0.7, 0.9)
    title(axes, 30, "Training", "a sequence of different images of one class, each with a time and noise of its own")
    label(axes, 70, "x1", "data")
    label(axes, 142, "x_t", "noisiest first", "(b, s, c, h, w)")
    for i, (x, t) in enumerate(zip(columns, times, strict=True)):
        x1 = digit(THREES[i])
        tile(axes, (x, 74), 48, x1)
        arrow(axes, (x, 100), (x, 124))
        code(axes, (x - 9, 115), f"t = {t:g}", size=11, align="right", colour=QUIET)
        tile(axes, (x, 152), 48, mixed(noise(8, 20 + i), x1, t))
    blocks(axes, 228, columns)
    label(axes, 294, "error", "(b, s)")
    for x in columns:
        arrow(axes, (x, 178), (x, 208))
        line(axes, (x, 247), (x, 257))
        arrow(axes, (x, 257), (x, 284))
        code(axes, (x, 302), "(v - u)²")
    title(axes, 352, "Sampling", "the trajectory is the sequence: every accepted point is its next image")
    label(axes, 390, "x", "one at a time", "(b, 1, c, h, w)")
    x0, x1 = noise(8, 1), digit(THREES[0])
    blocks(axes, 480, columns[:4])
    for i, x in enumerate(columns):
        tile(axes, (x, 398), 48, mixed(x0, x1, i / 4))
        if i < 4:
            arrow(axes, (x, 424), (x, 460))
            code(axes, (x - 9, 440), f"t = {i / 4:g}", size=11, align="right", colour=QUIET)
            arrow(axes, (x + 33, 461), (x + 33, 398), (x + 90, 398))
            code(axes, (x + 62, 390), "x + h v", size=11, colour=QUIET)
    code(axes, (columns[-1], 440), "t = 1", size=11, colour=QUIET)
    note(axes, 540, "The null branch of guidance has a history of its own.")
    return axes


def label(axes: Axes, y: float, name: str, *words: str) -> None:
    """The name of a row, at the left."""
    code(axes, (16, y), name, size=13, align="left")
    for i, word in enumerate(words):
        write = code if word.startswith("(") else text
        write(axes, (16, y + 17 * (i + 1)), word, size=11 if write is code else 12, colour=QUIET, align="left")


def blocks(axes: Axes, y: float, columns: Sequence[float]) -> None:
    """ARFlow's network over images at these columns, with the history between them."""
    left, right = columns[0] - 46, columns[-1] + 46
    box(axes, ((left + right) / 2, y), (right - left, 58), face=TINT)
    text(axes, (16, y - 10), "ARFlow", size=15, colour=ACCENT, align="left", bold=True)
    text(axes, (16, y + 8), "history M", size=12, colour=ACCENT, align="left")
    code(axes, (16, y + 24), "(b, heads, k, k)", size=11, colour=QUIET, align="left")
    for i, x in enumerate(columns):
        box(axes, (x, y), (74, 38))
        text(axes, (x, y - 2), "softmax in", size=12)
        text(axes, (x, y + 12), f"image {i + 1}", size=12)
    for i, (x, after) in enumerate(pairwise(columns)):
        arrow(axes, (x + 38, y), (after - 38, y), colour=ACCENT, width=1.8)
        code(axes, ((x + after) / 2 - 1, y - 7), f"M_{i + 1}", size=11, colour=ACCENT)


def flowar() -> Axes:
    """FlowAR: the scales of one image, in one pass and one after the other."""
    axes = canvas(712)
    columns = [34 + 158 * i for i in range(4)]
    maps = [pooled(digit(THREES[0]), 2**i) for i in range(4)]
    title(axes, 30, "Training", "all scales of one image at once, each with a time and noise of its own")
    for i, (x, s) in enumerate(zip(columns, maps, strict=True)):
        tile(axes, (x + 62, 76), 44, s)
        code(axes, (x + 34, 80), f"s_{i + 1}", align="right")
        arrow(axes, (x + 62, 100), (x + 62, 124))
        code(axes, (x + 54, 115), f"t_{i + 1}", size=11, align="right", colour=QUIET)
        tile(axes, (x + 62, 148), 44, mixed(noise(2**i, 3 + i), s, 0.5))
        arrow(axes, (x + 62, 172), (x + 62, 190))
        head(axes, (x + 62, 206))
        arrow(axes, (x + 101, 206), (x + 118, 206))
        code(axes, (x + 127, 210), "v")
        if i < 3:
            arrow(axes, (x + 86, 76), (x + 153, 76), (x + 153, 240))
            code(axes, (x + 122, 69), f"Up(s_{i + 1})", size=11, colour=QUIET)
    transformer(axes, 314, columns, maps)
    for x in columns:
        arrow(axes, (x + 62, 296), (x + 62, 224))
        code(axes, (x + 73, 264), "z")
    code(axes, (columns[-1] + 92, 80), "(b, c, h, w)", align="left", colour=QUIET)
    under(axes, 360, "a token reads its own scale and all coarser ones")
    for x, shape in (
        (16, "x, v, u (b, n, p)"),
        (178, "z (b, n, d)"),
        (282, "t (b, scales)"),
        (402, "errors (b, scales)"),
    ):
        code(axes, (x, 382), shape, align="left", colour=QUIET)
    title(axes, 432, "Sampling", "scale by scale, the coarsest first")
    for i, (x, s) in enumerate(zip(columns, maps, strict=True)):
        tile(axes, (x + 62, 480), 36, noise(2**i, 3 + i))
        code(axes, (x + 38, 484), "x0", align="right")
        arrow(axes, (x + 62, 500), (x + 62, 522))
        code(axes, (x + 70, 515), f"N_{i + 1} steps", size=11, align="left", colour=QUIET)
        head(axes, (x + 62, 538))
        arrow(axes, (x + 101, 538), (x + 131, 538))
        tile(axes, (x + 153, 538), 40, s)
        code(axes, (x + 153, 512), f"s_{i + 1}")
        if i < 3:
            arrow(axes, (x + 153, 560), (x + 153, 576))
    transformer(axes, 648, columns, maps)
    for x in columns:
        arrow(axes, (x + 62, 630), (x + 62, 556))
        code(axes, (x + 73, 598), "z")
    text(axes, (columns[-1] + 153, 577), "latent", size=12, colour=QUIET)
    under(axes, 694, "once for each scale; the flow head, at every step of the solver")
    return axes


def transformer(axes: Axes, y: float, columns: Sequence[float], maps: Sequence[Image]) -> None:
    """FlowAR's transformer over the scales at these columns, with its inputs above it."""
    left, right = columns[0] - 26, columns[-1] + 106
    box(axes, ((left + right) / 2, y), (right - left, 48), face=TINT)
    text(axes, (columns[0] - 5, y - 55), "class", size=12)
    for i, (x, before) in enumerate(zip(columns, [None, *maps[:-1]], strict=True)):
        if before is not None:
            tile(axes, (x - 5, y - 57), 30, upsampled(before))
        arrow(axes, (x - 5, y - 40 if i else y - 49), (x - 5, y - 18))
        box(axes, (x + 40, y), (118, 32))
        text(axes, (x + 40, y + 4.5), f"{4**i} token{'s' if i else ''}", size=12)
    for x, after in pairwise(columns):
        arrow(axes, (x + 100, y), (after - 20, y), colour=ACCENT, width=1.8)
        code(axes, (x + 119, y - 8), "K, V", size=11, colour=ACCENT)


def under(axes: Axes, y: float, words: str) -> None:
    """The name of FlowAR's transformer, below it, and what it does."""
    text(axes, (16, y), "Transformer", colour=ACCENT, align="left", bold=True)
    text(axes, (100, y), words, colour=QUIET, align="left")


def note(axes: Axes, y: float, words: str) -> None:
    """A sentence below a half of the drawing."""
    text(axes, (WIDTH / 2, y), words, colour=QUIET)


def head(axes: Axes, at: Point) -> None:
    """The flow head of a scale."""
    box(axes, at, (76, 32), face=ACCENT)
    text(axes, (at[0], at[1] + 4.5), "flow head", colour="white", bold=True)


DRAWINGS = {"sit": sit, "arflow": arflow, "flowar": flowar}


def draw(folder: Path) -> list[Path]:
    """Writes the drawings into the folder, the same bytes every time, and returns their files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.svg" for name in DRAWINGS]
    with matplotlib.style.context(["default", STYLE]):
        for file, make in zip(files, DRAWINGS.values(), strict=True):
            figure = make().figure
            assert isinstance(figure, Figure)
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return files


if __name__ == "__main__":
    draw(HERE)
