"""Image autoencoders of diffusers: AutoencoderKL, AutoencoderTiny, AutoencoderDC."""

from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fluvial.utils.extras import require
from fluvial.utils.files import plain
from fluvial.utils.places import missing, repository
from fluvial.utils.tensors import tensors_checksum

KINDS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
# images per call of the autoencoder: they need far more memory than latents do, and a CPU's cache is small
CHUNK = {"cpu": 1, "cuda": 16}
LOG_VARIANCE = (-30.0, 20.0)  # clamped to this range, as by diffusers' DiagonalGaussianDistribution and the releases


class Vae(nn.Module):
    """A frozen diffusers autoencoder with the shift and scale of its latents."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def __init__(
        self, model: nn.Module, identity: str, shift: tuple[float, ...] = (0.0,), scale: tuple[float, ...] = (1.0,)
    ) -> None:
        super().__init__()
        # channels last is up to twice as fast, on CPUs and on GPUs
        self.model: Any = model
        self.requires_grad_(False).eval()
        self.model.to(memory_format=torch.channels_last)
        self.identity = identity
        self.kind = type(model).__name__
        self.channels = int(self.model.config.latent_channels)
        self.image_channels = int(self.model.config.in_channels)
        self.stride = _stride(self.model)
        self.standardised(shift, scale)

    @cached_property
    def hash(self) -> str:
        """The first 16 digits of the SHA-256 of names and values of all weights."""
        return tensors_checksum(self.model.state_dict())[:16]

    def standardised(self, shift: tuple[float, ...], scale: tuple[float, ...]) -> "Vae":
        """This object, with shift and scale set. Raises ValueError unless each is one number or one per channel."""
        for name, values in (("shift", shift), ("scale", scale)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} must be one number or one for each of {self.channels} channels, got {values}")
        self.shift, self.scale = shift, scale
        return self

    @torch.no_grad()
    def moments(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b m h w"]:
        """The posterior's mean and log variance (m = 2c channels), or its mean alone (m = c), of images in [-1, 1]."""
        return _in_chunks(self._moments, images)

    def _moments(self, images: Tensor) -> Tensor:
        encoded = self.model.encode(images)
        if self.kind == "AutoencoderKL":
            return encoded.latent_dist.parameters
        return encoded.latents if self.kind == "AutoencoderTiny" else encoded.latent

    def latents(
        self,
        moments: Float[Tensor, "b m h w"],
        generator: torch.Generator | None = None,
        part: tuple[slice, int] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """A draw of latents, (mean + exp(logvar / 2) noise - shift) * scale; without a generator the mean is used.

        part = (rows, count) if these are only some rows of a batch of `count`: the noise of the whole batch is drawn,
        so that it does not depend on how the batch is divided.
        """
        z, logvar = moments[:, : self.channels], moments[:, self.channels :]
        if generator is not None and logvar.shape[1] > 0:
            rows, count = part or (slice(None), len(z))
            noise = torch.randn((count, *z.shape[1:]), generator=generator, device=z.device)[rows]
            z = z + (logvar.clamp(*LOG_VARIANCE) / 2).exp() * noise
        shift, scale = self._shift_and_scale(z)
        return (z - shift) * scale

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images decoded from latents, clamped to [-1, 1]."""
        shift, scale = self._shift_and_scale(latents)
        z = latents / scale + shift
        return _in_chunks(lambda part: self.model.decode(part).sample, z).clamp(-1, 1)

    def _shift_and_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return _per_channel(self.shift, like.dtype, like.device), _per_channel(self.scale, like.dtype, like.device)


class UnknownKind(ValueError):
    """The model named is not one of the autoencoders in `KINDS`."""


def from_pretrained(name: str) -> Vae:
    """The diffusers autoencoder in a folder, or of OWNER/NAME on the hub; of a pipeline, the one in its vae/.

    A subfolder on the hub is named by hub:OWNER/NAME/SUBFOLDER. Shift and scale come from the configuration. Raises
    ValueError if there is no autoencoder, it is not one of `KINDS`, or its weights are incomplete or not finite.
    """
    diffusers = require("diffusers", extra="vae", why=f"the autoencoder {name!r}")
    on_hub = None if Path(name).exists() else repository(name)
    here = on_hub is None
    folder, *inside = [str(Path(name).expanduser())] if on_hub is None else _split(on_hub)
    if here and not Path(folder).is_dir():
        raise ValueError(
            f"the autoencoder {name!r} is not there; if it was moved, name its folder with --autoencoder. "
            f"{missing(name, ('pixels',))}"
        )
    if here and not any(Path(folder, part, "config.json").exists() for part in ("", "vae")):
        raise ValueError(
            f"{name!r} is no autoencoder: it has no config.json; expected a folder of one of {', '.join(KINDS)}, as "
            f"diffusers' save_pretrained writes it"
        )
    options: dict[str, Any] = {"subfolder": inside[0]} if inside else {}
    if Path(folder, "vae", "config.json").exists():
        options = {"subfolder": "vae"}
    try:
        config = diffusers.AutoencoderKL.load_config(folder, **options)
        kind = config.get("_class_name")
        if kind not in KINDS:
            raise UnknownKind(f"{name!r} is {kind or 'no diffusers model'}; image autoencoders are {', '.join(KINDS)}")
        # never a .bin, which is a pickle
        how = {"low_cpu_mem_usage": False, "use_safetensors": True, "output_loading_info": True}
        model, told = getattr(diffusers, kind).from_pretrained(folder, **how, **options)
        if told["missing_keys"]:  # diffusers only warns, and initialises them at random
            raise ValueError(f"{sorted(told['missing_keys'])[0]} is missing")
        if odd := [key for key, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]:
            raise ValueError(f"{odd[0]} holds numbers that are not finite")
    except UnknownKind:
        raise
    except Exception as error:  # diffusers and the hub's client share no base class
        where = "is damaged" if here else "is no folder here, and cannot be loaded from the hub"
        within = Path(folder, options.get("subfolder", ""))
        if here and list(within.glob("*.bin")) and not list(within.glob("*.safetensors")):
            where = (
                "has its weights in a .bin alone, a pickle, which may run any code when it is read, so it is refused; "
                "save it with diffusers' save_pretrained, which writes .safetensors"
            )
            raise ValueError(f"the autoencoder {name!r} {where}") from error
        raise ValueError(f"the autoencoder {name!r} {where} ({type(error).__name__}: {plain(error)})") from error
    return Vae(model.float(), name, *_published(model.config))


def _split(name: str) -> list[str]:
    """OWNER/NAME, and the subfolder if there is one."""
    owner_and_name, rest = name.split("/")[:2], name.split("/")[2:]
    return ["/".join(owner_and_name), *(["/".join(rest)] if rest else [])]


def _published(config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:  # noqa: ANN401
    """Shift and scale from a diffusers configuration, with which (z - shift) * scale is about standard normal."""
    scale = float(config.get("scaling_factor") or 1.0)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean and std:
        return tuple(map(float, mean)), tuple(scale / float(s) for s in std)
    return (float(config.get("shift_factor") or 0.0),), (scale,)


def _stride(model: Any) -> int:  # noqa: ANN401
    """Image pixels per latent pixel along a side: every level but the last halves the image."""
    config = model.config
    levels = config.get("encoder_block_out_channels") or config.block_out_channels
    return 2 ** (len(levels) - 1)


def _in_chunks(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The network's output for x in float32, computed a few images at a time."""
    parts = x.contiguous(memory_format=torch.channels_last).split(CHUNK.get(x.device.type, 1))
    return torch.cat([network(part).float() for part in parts]).contiguous()


@lru_cache(maxsize=8)  # copying it at every batch would synchronise with a GPU
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).reshape(-1, 1, 1)
