"""Lists the image files of a folder, by their suffix, and records the files that are left out."""

import os
from collections import Counter
from pathlib import Path

from PIL import Image

# Formats of Pillow that are not read: drawings that Ghostscript or Windows renders, and formats that Pillow identifies
# but cannot decode. All others are read, also those that an extension has registered.
NOT_DECODED = frozenset(("EPS", "WMF", "PDF", "MPEG", "BUFR", "GRIB", "HDF5"))
ASIDE = frozenset(  # folders of thumbnails and system files, which are skipped as names with a leading dot are
    ("@eadir", "__macosx", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found")
)
CONVERT = frozenset(  # image formats that Pillow does not read here: the user is told to convert them
    (
        *(".heic", ".heif", ".hif", ".avif", ".avifs", ".jxl", ".jxr", ".bpg", ".svg", ".eps", ".wmf", ".exr", ".hdr"),
        *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".xcf"),
    )
)
NAMED = 3  # names of files listed per reason


def image_formats() -> list[str]:
    """Pillow's names of the image formats that are read."""
    Image.init()
    return [name for name in Image.ID if name not in NOT_DECODED]


def image_endings() -> frozenset[str]:
    """The suffixes of images that Pillow can open here, in lower case; extensions of Pillow add theirs."""
    formats = {*image_formats(), "MPO"}  # MPO begins with a JPEG, which Pillow opens
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def is_image(name: str, endings: frozenset[str] | None = None) -> bool:
    """True if a file name has the suffix of an image; pass `endings` when testing many names."""
    return os.path.splitext(name)[1].lower() in (image_endings() if endings is None else endings)


def is_aside(name: str) -> bool:
    """True if a file or folder of this name is hidden or belongs to the system, so that it is skipped."""
    return name.startswith(".") or name.lower() in ASIDE


def printable(name: str) -> str:
    """A file name as printable text, with control characters and bytes that are not UTF-8 escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class LeftOut:
    """A record of files that were left out: a count per reason, and the first few names."""

    def __init__(self) -> None:
        self.counts, self.names = Counter[str](), dict[str, list[str]]()

    def add(self, reason: str, name: str) -> None:
        """Records a file."""
        self.counts[reason] += 1
        names = self.names.setdefault(reason, [])
        if len(names) < NAMED:
            names.append(printable(name))

    @property
    def total(self) -> int:
        """The number of files left out."""
        return self.counts.total()

    def __str__(self) -> str:
        """A summary such as "3 files left out: 2 .txt (a.txt, b.txt); 1 without an ending (README)"; "" if none."""
        parts = []
        for reason, count in self.counts.most_common():
            more = ", ..." if count > len(self.names[reason]) else ""
            parts.append(f"{count:,} {reason} ({', '.join(self.names[reason])}{more})")
        return f"{self.total:,} file{'s' * (self.total != 1)} left out: {'; '.join(parts)}" if parts else ""


def why_left_out(name: str) -> str:
    """The reason for leaving out a file without an image's suffix, as `LeftOut` lists it."""
    ending = os.path.splitext(name)[1].lower()
    if ending in CONVERT:
        return f"{ending}, which Pillow does not open here: convert them"
    return f"{printable(ending)}" if ending else "without an ending"


def list_images(path: Path) -> tuple[dict[str, list[str]], LeftOut]:
    """The image files of a folder by subfolder ("" for the folder itself), and the files that are left out.

    Raises ValueError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(f"the folder {printable(str(error.filename))} cannot be listed: {error.strerror}")

    found, left_out, endings = dict[str, list[str]](), LeftOut(), image_endings()
    seen = {_identity(parent) for parent in path.resolve().parents}  # a link to one of them would make a cycle
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
    """The device and inode of a folder, the same for all links to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def size_of(file: str) -> int:
    """The size of a file in bytes; 0 for a broken link, which is reported when it is read."""
    return os.path.getsize(file) if os.path.exists(file) else 0
