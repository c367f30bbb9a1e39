"""The best settings of a sweep as the defaults of its run."""

from fluvial.config import to_json
from fluvial.run.folder import RunFolder
from fluvial.sampling.settings import SampleConfig
from fluvial.utils.atomic import only_one


def adopt(folder: RunFolder, settings: SampleConfig) -> None:
    """Writes sampling settings into run.json, as the run's own. Raises ValueError if they do not fit, or it trains."""
    with only_one(folder.path):
        run = folder.run().sampled_with(settings)
        folder.write({**folder.record(), "run": to_json(run)})
