"""Which files of a folder are images, by their names, and a record of the files that are left out."""

import os
from collections import Counter
from pathlib import Path

from PIL import Image

# Of what Pillow has a name for: no pixels of its own (drawings, which Ghostscript or Windows renders), or formats that
# it tells from others but has no decoder for. All others that it opens are taken, whoever registered them
NOT_DECODED = frozenset(("EPS", "WMF", "PDF", "MPEG", "BUFR", "GRIB", "HDF5"))
ASIDE = frozenset(  # folders of thumbnails and of system files, beside all whose name begins with a dot
    ("@eadir", "__macosx", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found")
)
CONVERT = frozenset(  # images all the same, which a user expects to be trained on
    (
        *(".heic", ".heif", ".hif", ".avif", ".avifs", ".jxl", ".jxr", ".bpg", ".svg", ".eps", ".wmf", ".exr", ".hdr"),
        *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".xcf"),
    )
)
NAMED = 3  # files named for each reason


def image_formats() -> list[str]:
    """The formats that images are looked for in, by Pillow's names."""
    Image.init()
    return [name for name in Image.ID if name not in NOT_DECODED]


def image_endings() -> frozenset[str]:
    """The endings of images, in small letters, that Pillow opens here: more if an extension of it is registered."""
    formats = {*image_formats(), "MPO"}  # which Pillow opens as the JPEG that it begins with
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def is_image(name: str, endings: frozenset[str] | None = None) -> bool:
    """Whether a file's name is that of an image; `endings` saves finding them for each of many files."""
    return os.path.splitext(name)[1].lower() in (image_endings() if endings is None else endings)


def is_aside(name: str) -> bool:
    """Whether a file or folder of this name is not for the user of the folder that it is in."""
    return name.startswith(".") or name.lower() in ASIDE


def printable(name: str) -> str:
    """A file name as text that any terminal, log and JSON file takes: bytes that are not UTF-8 and controls escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class LeftOut:
    """Files that are left out: how many for each reason, and the names of the first few."""

    def __init__(self) -> None:
        self.counts, self.names = Counter[str](), dict[str, list[str]]()

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        names = self.names.setdefault(reason, [])
        if len(names) < NAMED:
            names.append(printable(name))

    @property
    def total(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        """Such as "3 files left out: 2 .txt (a.txt, b.txt); 1 without an ending (README)"; "" if there are none."""
        parts = []
        for reason, count in self.counts.most_common():
            more = ", ..." if count > len(self.names[reason]) else ""
            parts.append(f"{count:,} {reason} ({', '.join(self.names[reason])}{more})")
        return f"{self.total:,} file{'s' * (self.total != 1)} left out: {'; '.join(parts)}" if parts else ""


def why_left_out(name: str) -> str:
    """Why a file that has no image's ending is left out."""
    ending = os.path.splitext(name)[1].lower()
    if ending in CONVERT:
        return f"{ending}, which Pillow does not open here: convert them"
    return f"{printable(ending)}" if ending else "without an ending"


def list_images(path: Path) -> tuple[dict[str, list[str]], LeftOut]:
    """The images in a folder by the subfolder that they are in, "" for those straight in it; and what is left out.

    Raises ValueError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(f"the folder {printable(str(error.filename))} cannot be listed: {error.strerror}")

    found, left_out, endings = dict[str, list[str]](), LeftOut(), image_endings()
    seen = {_identity(parent) for parent in path.resolve().parents}  # a link to one of them is a mistake
    for folder, below, files in os.walk(path, followlinks=True, onerror=refuse):
        inside = os.path.relpath(folder, path)
        if _identity(folder) in seen:
            left_out.add("link to a folder already read", inside)
            below.clear()
            continue
        seen.add(_identity(folder))
        below.sort()
        parts = () if inside == "." else Path(inside).parts
        aside = next(filter(is_aside, parts), "")
        images = []
        for file in sorted(files):
            inside = os.path.join(*parts, file)
            if aside:
                if is_image(file, endings):
                    left_out.add(f"in {printable(aside)}", inside)
            elif is_aside(file):
                left_out.add("hidden", inside)
            elif is_image(file, endings):
                images.append(os.path.join(folder, file))
            else:
                left_out.add(why_left_out(file), inside)
        if images:
            found.setdefault(parts[0] if parts else "", []).extend(images)
    return found, left_out


def _identity(folder: str | Path) -> tuple[int, int]:
    """The same for all links to a folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def size_of(file: str) -> int:
    """Bytes of a file, 0 of one that is not there: reading it will tell."""
    return os.path.getsize(file) if os.path.exists(file) else 0
