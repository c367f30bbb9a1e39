"""Runs `fluvial` commands with what Windows lacks taken away: the checks of test_platforms.py, in a process of its own.

    python windows.py FOLDER

Libraries are imported before, since they look at the system themselves.
"""

import builtins
import errno
import os
import pkgutil
import select
import shutil
import signal
import stat
import sys
import warnings
from importlib import import_module, reload
from pathlib import Path

import fluvial

MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
NAMES = {
    os: ("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fork", "getuid", "mkfifo", "posix_fadvise", "uname"),
    select: ("epoll", "poll"),
    signal: ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "alarm", "pthread_kill"),
}


def main(folder: Path) -> None:
    everything()
    for name in [name for name in sys.modules if name.partition(".")[0] == "fluvial"]:
        del sys.modules[name]
    take_away()
    warnings.filterwarnings("error", category=EncodingWarning, module=r"fluvial\.")  # not UTF-8 on Windows
    everything()
    act_as_windows(import_module("fluvial.utils.atomic"))
    commands(import_module("fluvial.cli"), folder)


def everything() -> None:
    for found in pkgutil.walk_packages(fluvial.__path__, "fluvial."):
        if found.name != "fluvial.__main__":
            import_module(found.name)


def take_away() -> None:
    """Lets imports by fluvial of modules that Windows lacks fail, and removes names that it lacks from others."""
    importing = builtins.__import__

    def checked(name, namespace=None, *rest):
        importer = (namespace or {}).get("__name__", "")
        if name.partition(".")[0] in MODULES and importer.partition(".")[0] == "fluvial":
            raise ModuleNotFoundError(f"No module named {name!r}, which {importer} imports", name=name)
        return importing(name, namespace, *rest)

    builtins.__import__ = checked
    for module, names in NAMES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    os.supports_dir_fd.clear()
    reload(shutil)  # so that it opens no folders to remove them


def act_as_windows(atomic) -> None:
    """Folders cannot be opened, what is open cannot be renamed or removed, and a rename replaces no folder."""
    atomic.WINDOWS = True
    opening, syncing, inside = os.open, os.fsync, Path("/proc/self/fd")

    def refuse(path):
        raise PermissionError(errno.EACCES, "as on Windows: Permission denied", str(path))

    def opened(path, flags, *rest, **options):
        if isinstance(path, (str, Path)) and Path(path).is_dir():
            refuse(path)
        return opening(path, flags, *rest, **options)

    def synced(descriptor):
        path = Path(os.readlink(inside / str(descriptor)))
        access = int((Path("/proc/self/fdinfo") / str(descriptor)).read_text().split("flags:")[1].split()[0], 8)
        if not access & (os.O_RDWR | os.O_WRONLY):
            refuse(path)
        syncing(descriptor)

    def closed(path):
        for link in inside.iterdir():
            if link.is_symlink() and Path(os.readlink(link)).is_relative_to(Path(path).absolute()):
                refuse(path)

    def moving(move, replaces):
        def moved(source, target, **options):
            closed(source)
            if os.path.lexists(target):
                closed(target)
                if not replaces or stat.S_ISDIR(os.lstat(target).st_mode):
                    refuse(target)
            move(source, target, **options)

        return moved

    def removing(remove):
        def removed(path, *rest, **options):
            if not options.get("dir_fd"):
                closed(path)
            remove(path, *rest, **options)

        return removed

    os.open, os.fsync = opened, synced
    os.rename, os.replace = moving(os.rename, False), moving(os.replace, True)
    os.unlink, os.remove = removing(os.unlink), removing(os.remove)


def commands(cli, folder: Path) -> None:
    atomic, run = import_module("fluvial.utils.atomic"), folder / "run"
    train = (
        "train digits-sit --method.width 16 --method.heads 2 --method.depth 1 --train.batch 64 --optim.schedule "
        "constant --sample.steps 2 --train.save-every 2 --train.validate-every 2 --train.log-every 1 "
        f"--train.sample-every 2 --train.keep 1 --train.ema-lengths 0.05 0.1 --train.ema-every 2 --out {run}"
    )
    for command in (
        "recipes",
        f"{train} --train.steps 4",
        f"{train} --train.steps 6",
        f"sample {run} --count 4",
        f"ema {run} --length 0.08 --out {folder}/averaged",
        f"export {run} --to safetensors --out {folder}/exported",
        f"import {folder}/exported/model.safetensors --out {folder}/imported",
        f"encode digits --autoencoder pixels --image-size 8 --out {folder}/latents",
        f"data verify {folder}/latents",
    ):
        code = cli.main(command.split())
        assert code == 0, f"{command} ends with {code}"
    left = [path for path in folder.rglob(".*") if path.name not in (".lock", ".saved")]
    assert not left, f"these are left: {left}"
    (folder / "empty").mkdir()
    with atomic.atomic_folder(folder / "empty") as partial:
        (partial / "a").touch()
    assert os.listdir(folder / "empty") == ["a"]
    with atomic.only_one(run):
        assert cli.main([*train.split(), "--train.steps", "8"]) == 1, "two processes train in one folder"
    assert cli._lacks_reader(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
