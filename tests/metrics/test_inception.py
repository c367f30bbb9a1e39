import sys
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import fidelity
import numpy as np
import pytest
import torch

from fluvial.metrics import features
from fluvial.metrics.features import extractor
from fluvial.utils.files import checksum

SCRIPT = Path(__file__).with_name("inception.py")


@pytest.mark.slow
def test_inception_is_torch_fidelitys_network_and_its_spatial_features_are_adms(tmp_path):
    says = fidelity.ask(SCRIPT, tmp_path)
    assert says == {"hash": checksum(tmp_path / "weights.pth"), "resize": "bilinear to 299 x 299 as in TensorFlow 1"}
    theirs, ours = (np.load(tmp_path / f"{whose}.npz") for whose in ("theirs", "ours"))
    assert ours["pooled"].shape == (5, 2048) and ours["spatial"].shape == (5, 2023) and ours["logits"].shape[1] == 1008
    for name in ("pooled", "logits", "spatial", "grey"):
        # another memory format sums in another order
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4 * theirs[name].std(), err_msg=name)
    assert np.abs(theirs["biased"] - theirs["logits"]).max() > 0.01 * theirs["logits"].std()
    assert theirs["spatial"].min() == 0  # behind the ReLU


@pytest.fixture
def imported(monkeypatch):
    """torch-fidelity in name only: what is wrong with the weights is found before it is used."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))


def test_weights_with_another_hash_are_refused(imported, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"another network")
    with pytest.raises(ValueError, match=r"weights\.pth is not Inception's weights: its SHA-256 .*6726825d"):
        extractor("inception", weights=str(tmp_path / "weights.pth"))


def test_weights_that_are_not_there_are_an_error(imported, tmp_path):
    with pytest.raises(ValueError, match=r"there are no weights at .*without --weights they are downloaded from"):
        extractor("inception", weights=str(tmp_path / "nowhere.pth"))


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_a_file_with_more_than_tensors_is_not_unpickled(imported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, "evil.pth")
    monkeypatch.setattr(features, "INCEPTION_SHA256", checksum(Path("evil.pth"))[:8])
    with pytest.raises(ValueError, match=r"evil\.pth is damaged, or holds more than tensors"):
        extractor("inception", weights="evil.pth")
    assert not Path("unpickled").exists()


def test_weights_are_downloaded_once_with_their_hash_checked(monkeypatch, tmp_path):
    calls = []

    def download(url, to, hash_prefix, progress):
        calls.append((url, hash_prefix))
        Path(to).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ValueError, match="is not Inception's weights"):
        features._inception_weights("")
    file = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    monkeypatch.setattr(features, "INCEPTION_SHA256", checksum(file)[:8])
    assert features._inception_weights("") == file
    assert calls == [(features.INCEPTION, "6726825d")]


def test_a_download_that_fails_says_what_to_do(imported, monkeypatch, tmp_path):
    def download(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ValueError, match=r"cannot be downloaded \(.*no network.*get https.* name the file with --weig"):
        extractor("inception")


def test_without_torch_fidelity_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"needs torch_fidelity: pip install 'fluvial\[eval\]'"):
        extractor("inception")


def test_a_torchvision_of_another_torch_is_told(monkeypatch, tmp_path):
    (tmp_path / "torch_fidelity.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_fidelity", raising=False)
    with pytest.raises(ValueError, match=r"a package that it imports does not fit this torch .*torchvision::nms"):
        extractor("inception")
