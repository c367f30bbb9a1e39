"""A check that runs learn from the same images, without which their scores cannot be compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluvial.data.images import BUILT_IN, DataConfig
from fluvial.utils.places import HUB


def check_same_data(data: Mapping[str, DataConfig]) -> None:
    """Raises ValueError naming two runs and the settings by which they are not of the same images."""
    (first, there), *others = data.items()
    for name, here in others:
        a, b = _images_of(there), _images_of(here)
        if there.digest and here.digest:  # the same images in two places
            a, b = a | {"digest": there.digest, "place": ""}, b | {"digest": here.digest, "place": ""}
        if unlike := [f"data.{key} is {a[key] or '-'} and {b[key] or '-'}" for key in a if a[key] != b[key]]:
            raise ValueError(
                f"{first} and {name} are of different images, and scores against different images cannot be compared: "
                f"{', '.join(unlike)}"
            )


def _images_of(data: DataConfig) -> dict[str, Any]:
    """The settings that decide on which images a run is measured against."""
    places = {
        key: str(Path(place).expanduser().resolve()) if place and not place.startswith(HUB) else place
        for key, place in (("path", data.path), ("test_path", data.test_path))
    }
    place = places["path"] or data.name
    if data.name in BUILT_IN:
        return {"place": place, "test_path": "", "split": "", "test_split": "", "size": 0, "channels": 1}
    kept = {key: getattr(data, key) for key in ("split", "test_split", "size", "channels")}
    return {"place": place, "test_path": places["test_path"], **kept}
