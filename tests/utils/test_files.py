import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import small_files
from fluvial.utils import atomic, pictures
from fluvial.utils.atomic import atomic_file, atomic_files, atomic_folder, check_unlocked, only_one, write_json
from fluvial.utils.files import read_bytes, reading
from fluvial.utils.tensors import Lazy, check_tensors, tensors_checksum, write_tensors


def test_safetensors_reads_what_is_written(tmp_path):
    tensors = {
        "matrix": torch.randn(3, 4),
        "turned": torch.randn(3, 4).T,
        "number": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "half": torch.randn(2, 3).bfloat16(),
    }
    lazy = Lazy((2,), torch.float16, lambda: torch.ones(2, dtype=torch.float16))
    for extra in ("", "x", "xx", "xxx"):  # headers of any length
        write_tensors(tmp_path / "a.safetensors", {**tensors, "lazy": lazy}, {"who": extra})
        read = load_file(tmp_path / "a.safetensors")
        assert all(torch.equal(read[name], value) for name, value in tensors.items())
        assert torch.equal(read["lazy"], lazy.make())
        with safe_open(tmp_path / "a.safetensors", "pt") as file:
            metadata = file.metadata()
        assert metadata.pop("sha256") and metadata == {"format": "pt", "who": extra}
        check_tensors(tmp_path / "a.safetensors")
        # the format wants the data to begin at a multiple of eight bytes
        assert int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little") % 8 == 0


def test_no_changed_byte_of_a_safetensors_file_is_accepted(tmp_path):
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"w": torch.randn(3, 4)}, {"sha256 of": "something", "text": '"sha256": "' + "0" * 64})
    whole = file.read_bytes()
    check_tensors(file)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"damaged"):
            check_tensors(file)
    for other in (b"", whole[:-1], whole + b"\0", whole[8:]):
        file.write_bytes(other)
        with pytest.raises(ValueError, match="damaged"):
            check_tensors(file)
    save_file({"w": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="carries no checksum"):
        check_tensors(file)


def write_bytes(path, seed):
    rng = np.random.default_rng(seed)
    with atomic_file(path) as temporary:
        temporary.write_bytes(rng.bytes(10_000))


WRITERS = {
    "bytes.bin": write_bytes,
    "values.json": lambda path, seed: write_json(path, {"numbers": [seed] * 5000}),
    "grid.png": lambda path, seed: pictures.save_grid(noise(seed), path),
    "frames.gif": lambda path, seed: pictures.save_gif([noise(seed)] * 2, path),
    "samples.npz": lambda path, seed: pictures.save_npz(noise(seed), None, path),
}


def noise(seed):
    return torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_leaves_the_file_as_it_was_and_names_it(tmp_path, name):
    path, write = tmp_path / name, WRITERS[name]
    path.write_bytes(b"precious")
    with small_files(4096), pytest.raises(OSError, match=rf"what was there before is as it was: .*{name}"):
        write(path, 1)
    assert path.read_bytes() == b"precious" and os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_succeeds_removes_what_a_killed_one_left(tmp_path, name):
    path, write = tmp_path / name, WRITERS[name]
    for old in (f".{path.stem}.12345678.tmp{path.suffix}", path.name):
        (tmp_path / old).write_bytes(b"half")
    write(path, 1)
    assert os.listdir(tmp_path) == [name] and path.read_bytes() != b"half"


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    with atomic_file(tmp_path / "a.txt") as outer:
        outer.write_text("outer")
        with atomic_file(tmp_path / "a.txt") as inner:
            inner.write_text("inner")
        assert (tmp_path / "a.txt").read_text() == "inner" and outer.exists()
    assert (tmp_path / "a.txt").read_text() == "outer" and os.listdir(tmp_path) == ["a.txt"]


def test_files_that_belong_together_change_together(tmp_path):
    with atomic_files(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        (folder / "b").write_text("1")
    with (
        small_files(4096),
        pytest.raises(OSError, match=r"as it was: .*out"),
        atomic_files(tmp_path / "out") as folder,
    ):
        (folder / "a").write_text("2")
        (folder / "b").write_bytes(bytes(10_000))
    assert [(tmp_path / "out" / name).read_text() for name in "ab"] == ["1", "1"]
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"]
    (tmp_path / "out" / ".files.12345678.tmp").mkdir()
    (tmp_path / "out" / ".files.12345678.tmp" / "half").touch()  # of one that was killed
    with atomic_files(tmp_path / "out") as folder:
        (folder / "a").write_text("3")
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b"] and (tmp_path / "out" / "a").read_text() == "3"


def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a") as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with atomic_folder(tmp_path / "deep" / "a") as folder:
        (folder / "all").touch()
        assert not (tmp_path / "deep" / "a").exists()
    assert os.listdir(tmp_path / "deep") == ["a"] and os.listdir(tmp_path / "deep" / "a") == ["all"]
    (tmp_path / "deep" / ".b.12345678.partial").mkdir()  # of one that was killed
    with atomic_folder(tmp_path / "deep" / "b") as folder:
        (folder / "all").touch()
    assert sorted(os.listdir(tmp_path / "deep")) == ["a", "b"]
    (tmp_path / "file").touch()
    for taken in ("deep", "file"):
        with pytest.raises(ValueError, match=f"{taken} is there already"), atomic_folder(tmp_path / taken):
            pass


def test_a_checksum_of_tensors_is_of_names_and_float32_values():
    one, two = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor(0.5)
    expected = hashlib.sha256(b"a" + np.float32(0.5).tobytes() + b"b" + np.float32([1, 3, 2, 4]).tobytes()).hexdigest()
    assert tensors_checksum({"b": one.T, "a": two}) == expected
    assert tensors_checksum({"a": two.bfloat16(), "b": one.T.double()}) == expected
    assert tensors_checksum({"a": two, "b": one}) != expected


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_after_the_rename_says_what_was_replaced(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("old")
    moved, replace = [], os.replace

    def replacing(source, target):
        moved.append(target)
        if len(moved) == 3:
            full()
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing)
    with pytest.raises(OSError, match=f"replaced already: a, b: '{tmp_path}'"), atomic_files(tmp_path) as folder:
        for name in ("c", "b", "a"):
            (folder / name).write_text("new")
    assert [(tmp_path / name).read_text() for name in sorted(os.listdir(tmp_path))] == ["new", "new", "old"]


def test_a_file_of_several_is_named_by_its_place(tmp_path):
    for several in (atomic_files(tmp_path / "out"), atomic_folder(tmp_path / "out.d")):
        with small_files(4096), pytest.raises(OSError, match=r"as it was: '.*/out(\.d)?/a\.json'$") as caught:
            with several as folder:
                write_json(folder / "a.json", [1] * 5000)
        assert ".tmp" not in str(caught.value) and ".partial" not in str(caught.value)


def test_an_error_of_a_library_is_named_too(tmp_path):
    with pytest.raises(OSError, match=r"^encoder error -2; what was there before is as it was: .*a\.png"):
        with atomic_file(tmp_path / "a.png"):
            raise OSError("encoder error -2")
    assert not os.listdir(tmp_path)


def test_links_are_followed_and_devices_are_not_replaced(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "there.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "there.json").read_text()) == {"a": 1}
    for place in (Path(os.devnull), tmp_path):
        with pytest.raises(ValueError, match="is there and is no file"):
            write_json(place, {})


def test_what_is_new_may_be_taken_for_left_over_until_it_is_locked(tmp_path, monkeypatch):
    """Another writer of the same name looks between the making and the lock: the first makes another."""
    taken, lock = [], atomic.lock_descriptor

    def locking(*arguments, **options):
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        return lock(*arguments, **options)

    monkeypatch.setattr(atomic, "lock_descriptor", locking)
    with atomic_file(tmp_path / "a.json") as temporary:
        temporary.write_text("[1]")
        assert [temporary] == list(tmp_path.iterdir()) != taken
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def none(*_, **__):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(atomic, "lock_descriptor", none)
    (tmp_path / ".a.12345678.tmp.json").write_text("perhaps of another machine")
    write_json(tmp_path / "a.json", [1])
    assert sorted(os.listdir(tmp_path)) == [".a.12345678.tmp.json", "a.json"]


def test_an_empty_folder_is_replaced_by_a_whole_one(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="as it was: .*out"):
        patch.setattr(os, "replace", full)
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
    assert os.listdir(tmp_path) == ["out"] and not os.listdir(tmp_path / "out")
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["a"]


def test_an_error_of_reading_names_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    with pytest.raises(OSError, match=r"Input/output error: '.*/a'"), reading(tmp_path / "a"):
        raise OSError(errno.EIO, "Input/output error")
    assert read_bytes(tmp_path / "a") == b"content"


@pytest.fixture
def soon():
    """A call that waits for longer than 20 s is an error."""

    def stop(number, frame):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("soon")
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=f"it is a pipe, not a file: '.*/{name}'"):
            read_bytes(tmp_path / name)
    with pytest.raises(OSError, match="it is a device, not a file: '/dev/null'"):
        read_bytes(Path("/dev/null"))
    with pytest.raises(IsADirectoryError, match="it is a folder, not a file"):
        read_bytes(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing"):
        read_bytes(tmp_path / "missing")


HOLDER = """
import sys, time
from pathlib import Path
from fluvial.utils.atomic import atomic_file, only_one
folder = Path(sys.argv[1])
with only_one(folder), atomic_file(folder / "a.json") as temporary:
    temporary.write_text("half")
    print("held", flush=True)
    time.sleep(100)
"""


def test_locks_of_another_process_end_when_it_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        for asking in (check_unlocked, lambda folder: only_one(folder).__enter__()):
            with pytest.raises(ValueError, match=f"another process is training in {tmp_path}; wait for it"):
                asking(tmp_path)
        (half,) = (path for path in tmp_path.iterdir() if path.name != ".lock")
        write_json(tmp_path / "a.json", [1])
        assert half.read_text() == "half", "what another process writes was removed"
    finally:
        process.kill()
        process.communicate()
    check_unlocked(tmp_path)
    with only_one(tmp_path):
        write_json(tmp_path / "a.json", [2])
    assert sorted(os.listdir(tmp_path)) == [".lock", "a.json"]


def test_asking_whether_a_folder_is_locked_does_not_refuse_others(tmp_path, monkeypatch):
    """Who asks locks it for a moment: others wait for that."""
    with only_one(tmp_path):
        pass
    asker = os.open(tmp_path / ".lock", os.O_RDONLY)
    assert filelock.lock_descriptor(asker, blocking=False)
    monkeypatch.setattr(atomic.time, "sleep", lambda seconds: filelock.unlock_descriptor(asker))
    check_unlocked(tmp_path)
    assert filelock.lock_descriptor(asker, blocking=False)
    with only_one(tmp_path):
        pass
    os.close(asker)


def test_a_lock_is_asked_for_where_nothing_may_be_written(tmp_path, monkeypatch):
    """As the operating system has it for a file that may only be read; permissions do not hold for root."""
    opening = os.open

    def opened(path, flags, *mode):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opening(path, flags, *mode)

    with only_one(tmp_path), monkeypatch.context() as patch:
        patch.setattr(os, "open", opened)
        patch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
        with pytest.raises(ValueError, match="another process is training"):
            check_unlocked(tmp_path)
        check_unlocked(tmp_path / "missing")
    check_unlocked(tmp_path)
    assert os.listdir(tmp_path) == [".lock"]
