"""Translation of released ARFlow weights (github.com/TheFllood/ARFlow, models.py and models_infer.py)."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from fluvial.methods import arflow
from fluvial.utils.translation import Translation, stacked
from fluvial.weights.sit import settings_from, source_of, transformer

LABELS = "y_embedder.embedding_table.weight"
TELLTALE = r"blocks\.\d+\.attn\.gt?_proj\."  # names that no other method has
ATTENTION = {"attention.gate.": "attn.gt_proj.", "attention.out.": "attn.out_proj."}


def config_from(state_dict: Mapping[str, Tensor], **hints: Any) -> arflow.Config:  # noqa: ANN401
    """The configuration of these weights, read off their shapes, which do not show a size that is not square."""
    heads = len(state_dict["blocks.0.attn.gt_proj.weight"])
    return arflow.Config(**settings_from(state_dict, **{"heads": heads, **hints}))


def translation(state_dict: Mapping[str, Tensor], names: Iterable[str], config: arflow.Config) -> Translation:
    """The translation to our tensors of these names: q, k, v and g of a block become one matrix."""
    sources = {}
    for name in names:
        block, found, _ = name.partition(".attention.qkvg.")
        each = (f"{block}.attn.{projection}_proj.weight" for projection in "qkvg")
        sources[name] = stacked(each) if found else source_of(name, config, ATTENTION)
    return transformer(state_dict, sources, config)
