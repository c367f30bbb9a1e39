"""Import of published weights, and export to safetensors, the Hugging Face hub and diffusers."""

from fluvial.weights.released import from_state_dict as from_state_dict
