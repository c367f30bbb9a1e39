"""Other libraries' warnings, log lines and progress bars, kept out of the terminal of every command."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = {  # read by libraries when they are imported
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",
}
LOGGERS = (
    "torch",
    "PIL",
    "datasets",
    "huggingface_hub",
    "transformers",
    "diffusers",
    "fsspec",
    "filelock",
    "matplotlib",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves errors alone, and any of these settings that the user has made: variables, or warnings by python -W."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
