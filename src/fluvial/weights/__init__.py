"""Published weights to ours, and ours to files: import, export, the pipeline of diffusers."""

from fluvial.weights.released import from_state_dict as from_state_dict
