"""Where weights are in a trainer's file, whatever wraps their names: the same tensors come out as of a plain one."""

import pytest
import torch

from fluvial.utils.weight_parts import find
from fluvial.weights.released import telltales

NAMES = ("x_embedder.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "blocks.0.mlp.fc1.weight")
WEIGHTS = {name: torch.full((i + 1,), float(i)) for i, name in enumerate(NAMES)}
OTHER = {name: value + 100 for name, value in WEIGHTS.items()}
AUTOENCODER = {"encoder.down.0.block.0.conv1.weight": torch.ones(1), "decoder.up.0.block.0.conv1.weight": torch.ones(1)}


def under(prefix, weights=None):
    return {f"{prefix}{name}": value for name, value in (WEIGHTS if weights is None else weights).items()}


def inside(*wrappers):
    """Wrapped at every level: the model, each block, and what is in a block."""
    word = "".join(f"{wrapper}." for wrapper in wrappers)
    return {
        word + name.replace("blocks.0.", f"blocks.0.{word}").replace("qkv.", f"qkv.{word}"): value
        for name, value in WEIGHTS.items()
    }


COUNTER = {"n_averaged": torch.tensor(9)}
MOMENTS = {f"{name}.exp_avg": value for name, value in OTHER.items()}
CASES = {
    "plain": (WEIGHTS, ""),
    "module": (inside("module"), ""),
    "compiled": (inside("_orig_mod"), ""),
    "checkpointed": (inside("_checkpoint_wrapped_module"), ""),
    "twice": (inside("module", "_orig_mod", "_checkpoint_wrapped_module", "module"), ""),
    "averaged model": ({"ema": COUNTER | under("module.")}, "ema"),
    "averaged and compiled": ({"model": OTHER, "swa_model": COUNTER | under("module._orig_mod.")}, "swa_model"),
    "empty ema": ({"ema": {}, "model": WEIGHTS}, "model"),
    "no ema": ({"ema": None, "model": inside("_orig_mod"), "ema_decay": 0.99}, "model"),
    "deepspeed": ({"module": WEIGHTS, "global_steps": 3, "optimizer": {"scale": torch.ones(2)}}, ""),
    "lightning": ({"state_dict": under("model.") | {"loss.weight": torch.ones(1)}, "epoch": 3}, "state_dict.model"),
    "lightning with an average": (
        {"state_dict": under("net.", OTHER) | under("ema_model.module.") | under("vae.", AUTOENCODER)},
        "state_dict.ema_model",
    ),
    "ema_pytorch": (
        {"model": OTHER, "ema": under("online_model.", OTHER) | under("ema_model.") | {"initted": torch.tensor(True)}},
        "ema.ema_model",
    ),
    "ema_state_dict": (
        {"model_state_dict": OTHER, "ema_state_dict": {"shadow": WEIGHTS, "decay": 0.9}},
        "ema_state_dict.shadow",
    ),
    "shadow_params": (
        {"model": OTHER, "ema": {"decay": 0.9, "shadow_params": list(WEIGHTS.values())}},
        "ema.shadow_params",
    ),
    "optimizers by name": (
        {"model": WEIGHTS, "optimizer": MOMENTS, "opt": {"exp_avg": OTHER}, "optim": {"state": {0: {"step": 1}}}},
        "model",
    ),
    "with its autoencoder": (under("sit.") | under("first_stage.", AUTOENCODER), "sit"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_a_plain_file(case):
    content, place = CASES[case]
    found = find(content, telltales())
    assert found.name == place
    assert list(found.weights) == list(WEIGHTS)
    assert all(torch.equal(found.weights[name], value) for name, value in WEIGHTS.items())


def test_what_was_not_taken_is_said():
    left = {name: find(content, telltales()).dropped for name, (content, _) in CASES.items()}
    assert left["plain"] == left["twice"] == {}
    assert left["averaged model"] == {"ema.n_averaged": "a counter of the averaging"}
    assert left["empty ema"] == left["no ema"] == {"ema": "it is empty, so model was taken"}
    assert left["lightning"] == {"state_dict.loss": "another part of the file"}
    assert left["lightning with an average"].keys() == {"state_dict.net", "state_dict.vae"}
    assert left["shadow_params"] == {"model": "no average"}
    flat = {f"model_ema.{name.replace('.', '')}": value for name, value in OTHER.items()}  # as LDM's LitEma
    dropped = find({"state_dict": under("model.") | flat}, telltales()).dropped
    says = "an average that does not name its weights as the model does, so state_dict.model was taken"
    assert dropped == {"state_dict.model_ema": says}
    other_shapes = {"model": WEIGHTS, "ema": {"shadow_params": list(WEIGHTS.values())[1:]}}
    assert find(other_shapes, telltales()).dropped == {"ema": says.replace("state_dict.model", "model")}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            under("module.") | WEIGHTS,
            r"called x_embedder.proj.weight without their wrappers: module.* and x_",
        ),
        (inside("_orig_mod") | inside("module"), "two tensors"),
        ({"model": WEIGHTS, "net": OTHER}, "holds weights in model, net: save the ones to import alone"),
        ({"model": WEIGHTS, "ema1": OTHER, "ema2": OTHER}, "holds weights in ema1, ema2"),
        ({"model": {"epoch": 3}}, "holds no weights: 'epoch' is a int, not a tensor"),
        ({"ema": {}, "model": {}}, "holds no weights: it is empty"),
    ],
)
def test_what_is_not_clear_is_refused(content, says):
    with pytest.raises(ValueError, match=says):
        find(content, telltales())


def test_dictionaries_in_themselves_end():
    loop, bomb = {"weight": torch.ones(1)}, {"weight": torch.ones(1)}
    loop["again"] = loop
    for _ in range(30):  # 2^30 entries in 31 dictionaries
        bomb = {"a": bomb, "b": bomb}
    for content in (loop, bomb):
        with pytest.raises(ValueError, match="holds dictionaries 16 deep"):
            find(content, telltales())
