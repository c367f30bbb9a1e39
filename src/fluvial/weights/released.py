"""Translation of released state dicts into models and the runs they belong to."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.autoencoders import AutoencoderConfig, kl16
from fluvial.config import Run
from fluvial.flow.guidance import Guidance
from fluvial.methods import METHODS, Config, empty_model, method_of
from fluvial.recipes import imagenet
from fluvial.utils.tensors import Lazy
from fluvial.utils.translation import reading, translate
from fluvial.weights import arflow, flowar, labels, sit

FAMILIES: dict[str, ModuleType] = {"sit": sit, "arflow": arflow, "flowar": flowar, "kl16": kl16}
# published runs, whose training and sampling settings are used for weights of their method
RUNS = {"sit": imagenet.imagenet256_sit_xl2, "arflow": imagenet.imagenet256_arflow_xl2}
FLOWAR_RUNS = {
    "S": imagenet.imagenet256_flowar_s,
    "B": imagenet.imagenet256_flowar_b,
    "L": imagenet.imagenet256_flowar_l,
    "H": imagenet.imagenet256_flowar_h,
}
STRIDE = {"sit": 8, "arflow": 8, "flowar": 16}  # image pixels per latent pixel, along a side
SCALE = {"sit": 0.18215, "arflow": 0.18215, "flowar": kl16.SCALE}  # scale of the latents in each release


@dataclass(frozen=True, kw_only=True)
class Translated:
    """Released weights as tensors of our model, with the run they belong to."""

    kind: str
    size: str
    """The published size, such as "XL/2"; "" if there is none like it."""
    run: Run
    tensors: dict[str, Lazy]
    dropped: dict[str, str]
    """Names of tensors that were left out, with the reason."""
    assumed: str = ""
    """Assumptions about facts that the file does not tell."""


def from_state_dict(state_dict: Mapping[str, Tensor], **hints: Any) -> tuple[nn.Module, Run]:  # noqa: ANN401
    """A model with released SiT, ARFlow or FlowAR weights, in float32 and eval mode, and its run.

    Method and sizes are read off names and shapes. `hints` are what those do not show: heads, scales (rows of tokens,
    coarse to fine), image_size (one number or height and width, in pixels or latent pixels, whichever fits the tokens),
    classes or label_drop (by default the last row of the class table is taken as the null class), and any other setting
    of the method. The run has the release's sampling settings, but no guidance if labels were not dropped. Tensors on
    the meta device give a model on the meta device.

    Raises ValueError naming tensors that are missing, unexpected, of another shape or type, or not finite, and hints
    that are needed.
    """
    found = translated(state_dict, **hints)
    if any(value.is_meta for value in state_dict.values()):
        with torch.device("meta"):
            return method_of(found.run.method).Model(found.run.method).eval(), found.run
    model = empty_model(found.run.method)
    model.load_state_dict({name: lazy.make() for name, lazy in found.tensors.items()})
    return model.eval(), found.run


def telltales(kind: str = "auto") -> list[str]:
    """Patterns of tensor names that identify weights of this kind, or of all kinds."""
    return [family.TELLTALE for name, family in FAMILIES.items() if kind in ("auto", name)]


def kind_of(state_dict: Mapping[str, Tensor]) -> str:
    """The kind of these weights: sit, arflow, flowar or kl16. Raises ValueError if it is none of them."""
    for kind, family in FAMILIES.items():
        if any(re.match(family.TELLTALE, key) for key in state_dict):
            return kind
    names = ", ".join(list(state_dict)[:3])
    raise ValueError(
        f"not weights of {', '.join(FAMILIES)}: no key is known; there are {len(state_dict)} keys: {names} ..."
    )


def translated(
    state_dict: Mapping[str, Tensor],
    *,
    kind: str = "auto",
    dtype: torch.dtype | None = None,
    **hints: Any,  # noqa: ANN401
) -> Translated:
    """The tensors and the run of released weights; each tensor is made when it is read."""
    kind = kind_of(state_dict) if kind == "auto" else kind
    if kind not in METHODS:
        raise ValueError(f"the weights are those of {kind}, an autoencoder; a generator was expected")
    family = FAMILIES[kind]
    with reading(kind):
        settings = _settings(kind, hints)
        told = {name: settings.pop(name, None) for name in ("classes", "label_drop")}
        classes = labels.classes_of(len(state_dict[family.LABELS]), **told)
        settings["classes"] = classes.known
        if told["label_drop"] is not None or not classes.has_null:
            settings["label_drop"] = float(told["label_drop"] or 0)
        config = family.config_from(state_dict, **settings)
        expected = expected_tensors(config, state_dict)
        translation = family.translation(state_dict, expected, config)
        if not classes.has_null:
            translation = labels.with_null_row(translation, family.LABELS)
        tensors = translate(state_dict, translation, expected, dtype)
    dropped = {**translation.dropped}
    dropped |= {key: "a fixed table, which the model computes itself" for key in translation.fixed if key in state_dict}
    size = size_of(config)
    run = _run(kind, size, config, hints.get("autoencoder", ""))
    return Translated(kind=kind, size=size, run=run, tensors=tensors, dropped=dropped, assumed=classes.assumed)


def expected_tensors(config: Config, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the configured model, on the meta device.

    Raises ValueError for a model with more blocks than given tensors, as building it could take hours.
    """
    blocks = sum(getattr(config, name, 0) for name in ("depth", "head_depth"))
    if blocks > len(given):
        raise ValueError(f"a model of {blocks:,} blocks has more than the {len(given):,} tensors that are given")
    with torch.device("meta"):
        return method_of(config).Model(config).state_dict()


def size_of(config: Config) -> str:
    """The name of the published size with this shape, or ""."""
    names = ("depth", "width", "heads", "patch", "head", "head_depth", "head_width")
    method, shape = method_of(config), [name for name in names if hasattr(config, name)]
    for name in method.PRESETS:
        preset = method.preset(name)
        if all(getattr(preset, field) == getattr(config, field) for field in shape):
            return name
    return ""


def _settings(kind: str, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The hints that are settings of the method. Raises ValueError for an unknown one."""
    known = ["image_size", *(field.name for field in fields(METHODS[kind].Config))]
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in hints.items() if k != "autoencoder"}
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"unknown hints {', '.join(unknown)}; there are autoencoder, {', '.join(known)}")
    return settings


def _run(kind: str, size: str, config: Config, autoencoder: str) -> Run:
    """A run with the settings of the published run of this size, or of the most similar one."""
    run = FLOWAR_RUNS.get(size, FLOWAR_RUNS["L"])() if kind == "flowar" else RUNS[kind]()
    stride, scale = STRIDE[kind], SCALE[kind]
    if autoencoder == "pixels" or (not autoencoder and config.channels in (1, 3)):
        ours, stride = AutoencoderConfig(name="pixels"), 1
    elif config.channels == run.method.channels:
        ours = AutoencoderConfig(name=autoencoder or run.autoencoder.name, shift=(0.0,), scale=(scale,))
    elif autoencoder:
        ours = AutoencoderConfig(name=autoencoder)
    else:
        raise ValueError(f"no autoencoder of the releases has {config.channels} channels: give autoencoder")
    side = config.size[0] * stride if config.size[0] == config.size[1] else 0
    optim = replace(run.optim, warmup=0)  # the published warm-up is for untrained weights
    # without label drop there is no null branch for guidance
    guidance = run.sample.guidance if config.classes and config.label_drop else Guidance()
    if guidance.channels is not None and guidance.channels > config.channels:
        guidance = replace(guidance, channels=None)  # all channels
    sample = replace(run.sample, guidance=guidance)
    data = replace(run.data, size=side)
    return replace(run, method=config, autoencoder=ours, data=data, optim=optim, sample=sample)
