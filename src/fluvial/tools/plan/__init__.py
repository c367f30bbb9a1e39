"""Plans a run for a data set and a time: what the data is, what fits the machine, and the reasons."""

from fluvial.tools.plan.dataset import config_of as config_of
from fluvial.tools.plan.dataset import name_of as name_of
from fluvial.tools.plan.further import steps_in as steps_in
from fluvial.tools.plan.further import steps_of_epochs as steps_of_epochs
from fluvial.tools.plan.planner import plan as plan
from fluvial.tools.plan.result import Choice as Choice
from fluvial.tools.plan.result import Plan as Plan
