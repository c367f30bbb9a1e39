"""Images measured against images: what may be measured, its statistics, references, and scores."""
