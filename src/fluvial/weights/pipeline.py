"""The diffusers pipeline of a run, written by `fluvial export RUN --to diffusers`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import nn

from fluvial.autoencoders import Pixels, Vae
from fluvial.config import from_json, to_json
from fluvial.methods import method_of
from fluvial.run.load import Sampler, load
from fluvial.utils.atomic import atomic_folder, write_json
from fluvial.utils.files import json_checksum
from fluvial.utils.tensors import tensors_checksum
from fluvial.weights import exporting

PARTS = {  # the keys of `contents`, as text
    "run": "the run in the pipeline's model/config.json",
    "model": "the model in the pipeline",
    "vae": "the autoencoder in the pipeline",
    "vae_config": "the configuration of the autoencoder in the pipeline",
}


def contents(run: Mapping[str, Any], model: nn.Module, vae: Any) -> dict[str, Any]:  # noqa: ANN401 - or None
    """SHA-256 of a pipeline's run and weights, with the configuration of its autoencoder."""
    return {
        "run": json_checksum(run),
        "model": tensors_checksum(model.state_dict()),
        "vae": "" if vae is None else tensors_checksum(vae.state_dict()),
        "vae_config": {} if vae is None else {k: v for k, v in vae.config.items() if not k.startswith("_")},
    }


def _check(model: "FluvialModel", vae: Any) -> None:  # noqa: ANN401
    """Raises ValueError if parts of a pipeline are damaged or were not exported together."""
    written, again = model.config["written"], "copy or download the folder again, or repeat `fluvial export`"
    if not written:
        raise ValueError(f"the pipeline carries no checksums of its parts: {again}")
    for part in (model, *([] if vae is None else [vae])):
        if part.dtype != torch.float32:
            raise ValueError(f"the pipeline is loaded as float32, which its checksums are of, got {part.dtype}")
    found = contents(model.config["run"], model.network, vae)
    known = dict(written).get("vae_config") or {}  # later versions of diffusers may add settings
    found["vae_config"] = {name: found["vae_config"].get(name) for name in known}
    for name, what in PARTS.items():
        if json.dumps(found[name], sort_keys=True) != json.dumps(written.get(name), sort_keys=True):
            raise ValueError(f"{what} is damaged, or not the one that was exported: {again}")


class FluvialModel(ModelMixin, ConfigMixin):
    """A model of this library for diffusers, configured by its run (as JSON) and the `contents` of its pipeline."""

    @register_to_config
    def __init__(self, run: dict[str, Any], written: dict[str, Any] | None = None) -> None:
        super().__init__()
        config = from_json(run).method
        self.network: nn.Module = method_of(config).Model(config)

    def forward(self, *inputs: Any) -> Any:  # noqa: ANN401
        """Calls the method's model."""
        return self.network(*inputs)


class FluvialPipeline(DiffusionPipeline):
    """Draws the images that `fluvial sample` draws: image i depends on (seed, i), its class and the settings.

    Raises ValueError if the model, its run or the autoencoder are not as they were exported.
    """

    _optional_components = ["vae"]  # noqa: RUF012 - a list in diffusers

    def __init__(self, model: FluvialModel, vae: Any = None) -> None:  # noqa: ANN401 - any autoencoder of diffusers
        super().__init__()
        _check(model, vae)
        for part in (model, *([] if vae is None else [vae])):
            for weight in part.parameters():  # diffusers maps them from the file, without alignment,
                weight.data = weight.data.clone()  # which changes rounding in matrix products
        self.register_modules(model=model, vae=vae)

    def __call__(
        self,
        class_labels: list[int] | None = None,
        *,
        count: int | None = None,
        seed: int = 0,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:  # noqa: ANN401
        """Draws `count` images, by default one for each label. Labels are repeated in turn; default: all classes.

        Guidance and steps are those of the run unless given. output_type is "pil", "np" (b h w c, in 0 ... 1) or "pt"
        (b c h w, in 0 ... 1).
        """
        run = from_json(self.model.config["run"])
        settings = run.sample
        if num_inference_steps is not None:
            settings = replace(settings, steps=num_inference_steps)
        if guidance_scale is not None:
            guidance = replace(settings.guidance, weight=guidance_scale, scale_weights=())
            settings = replace(settings, guidance=guidance)
        autoencoder = Pixels()
        if self.vae is not None:
            autoencoder = Vae(self.vae, run.autoencoder.name, run.autoencoder.shift, run.autoencoder.scale)
        # frozen like a loaded run: for trainable weights attention uses another kernel, with other rounding
        model = self.model.network.float().requires_grad_(False).eval()
        sampler = Sampler(model=model, run=run, autoencoder=autoencoder)
        classes = tuple(class_labels or ())
        count = len(classes) or 1 if count is None else count
        drawn = sampler.sample(count, classes=classes or None, seed=seed, settings=settings)
        images: Any = drawn.images
        if output_type == "pil":
            images = [Image.fromarray(image.movedim(0, -1).squeeze(-1).numpy()) for image in images]
        elif output_type == "np":
            images = images.movedim(1, -1).numpy().astype("float32") / 255
        elif output_type == "pt":
            images = images.float() / 255
        else:
            raise ValueError(f"output_type must be pil, np or pt, got {output_type!r}")
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def to_diffusers(run: Path | str, out: Path | str, *, license: str = "", step: int | None = None) -> Path:
    """Writes a diffusers pipeline folder with the model, its autoencoder and a model card.

    DiffusionPipeline.from_pretrained(out, custom_pipeline=out, trust_remote_code=True) draws the images that
    `fluvial sample` draws. Raises ValueError if there is no such run, or something at `out` already.
    """
    sampler = load(run, device="cpu", step=step)
    autoencoder, vae = sampler.autoencoder, None
    settings = replace(sampler.run.autoencoder, shift=autoencoder.shift, scale=autoencoder.scale)
    if isinstance(autoencoder, Vae):
        vae = autoencoder.model
    values = exporting.public(to_json(replace(sampler.run, autoencoder=settings)))
    model = FluvialModel(run=values, written=contents(values, sampler.model, vae))
    model.network.load_state_dict(sampler.model.state_dict())
    parameters = sum(p.numel() for p in sampler.model.parameters())
    meta = {"step": sampler.step, "weights_only": sampler.average == "as imported"}
    with atomic_folder(Path(out)) as folder:
        FluvialPipeline(model=model, vae=vae).save_pretrained(folder)
        for file in folder.rglob("*.json"):  # diffusers notes where it loaded an autoencoder from
            write_json(
                file, exporting.public({k: v for k, v in json.loads(file.read_bytes()).items() if k != "_name_or_path"})
            )
        (folder / "pipeline.py").write_bytes(exporting.PIPELINE.encode())
        (folder / "README.md").write_text(
            exporting.model_card(Path(run), license, exporting.USE_DIFFUSERS, meta, parameters)
        )
    return Path(out)
