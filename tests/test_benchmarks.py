"""The benchmarks run, on little; what they measure is not tested."""

import importlib.util
import os
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="empties the page cache, which needs Linux")
def test_reading_the_cache_is_compared_with_npz_files(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("data", Path(__file__).parents[1] / "benchmarks" / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.compare(tmp_path, rows=1024)
    printed = capsys.readouterr().out
    assert ".npz, one thread" in printed and "cache, one thread" in printed
