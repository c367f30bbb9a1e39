"""Our Inception extractor and torch-fidelity's own network, with the same random weights, on the same images.

inception.py FOLDER writes theirs.npz and ours.npz there; fidelity.py says why in a process of its own.
"""

import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from fidelity import declare_operators


def random_network(fidelity):
    """torch-fidelity's network without its weights: random, such that activations neither vanish nor explode."""

    class Random(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    nothing = BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Random("random", ["2048", "logits_unbiased", "logits"], feature_extractor_weights_path=nothing)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("bn.weight"):
            value.uniform_(0.8, 1.2)
        elif value.ndim > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5)
        elif value.is_floating_point():
            value.normal_(std=0.3)
    return network


def spatial(network, images):
    """The network up to `mixed_6/conv`, module by module, then TensorFlow's layout and the ADM suite's slice of it."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    x = (interpolate_bilinear_2d_like_tensorflow1x(images.float(), (299, 299), align_corners=False) - 128) / 128
    for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
                 "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"):  # fmt: skip
        x = getattr(network, name)(x)
    branch = network.Mixed_6d.branch1x1
    x = branch.bn(branch.conv(x)).clamp(min=0).numpy()
    activations = np.moveaxis(x, 1, -1)[..., :7]
    return activations.reshape(activations.shape[0], -1)


def main(folder):
    import torch_fidelity

    from fluvial.metrics import features
    from fluvial.utils.files import checksum

    torch.manual_seed(0)
    with torch.no_grad():
        network = random_network(torch_fidelity)
        file = folder / "weights.pth"
        torch.save(network.state_dict(), file)
        images = torch.randint(0, 256, (5, 3, 40, 52), dtype=torch.uint8)
        pooled, logits, biased = network(images)
        grey = network(images[:, :1].repeat(1, 3, 1, 1))[0]
        theirs = {"pooled": pooled, "logits": logits, "biased": biased, "grey": grey}
        np.savez(folder / "theirs.npz", spatial=spatial(network, images), **{k: v.numpy() for k, v in theirs.items()})

    features.INCEPTION_SHA256 = checksum(file)[:8]
    extractor = features.extractor("inception", weights=str(file))
    ours = extractor.extract(images)
    grey = extractor.extract(images[:, :1])
    np.savez(
        folder / "ours.npz",
        grey=grey.pooled.numpy(),
        **{k: v.numpy() for k, v in ours._asdict().items()},
    )
    print(json.dumps({"hash": extractor.hash, "resize": extractor.resize}))


if __name__ == "__main__":
    kept = declare_operators()
    main(Path(sys.argv[1]))
