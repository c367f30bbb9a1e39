"""Published weights to ours: key names, layouts and the settings that shapes give away."""
