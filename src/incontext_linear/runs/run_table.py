"""A saved view of MLflow's run table: which algorithm each run's learner follows, nearest first.

MLflow's table shows no metric until somebody chooses some. Its pages keep a view that is shared in
a tag of the experiment, and open it by the tag's name.
"""

import json
import math
from typing import Any

from mlflow.tracking import MlflowClient

KEY = "algorithms"
"""Opens the view: ``…/runs?viewStateShareKey=algorithms``."""
NAME = "Which algorithm"
HEADLINE = "behaviour/spd_to_ols_at_2d_share"
SORTED_BY = f"metrics.`{HEADLINE}`"
COLUMNS = (
    SORTED_BY,
    "metrics.`behaviour/nearest_margin`",
    "metrics.`identification/num_survivors`",
    "tags.`verdict`",
    "tags.`nearest`",
    "params.`seed`",
)
_TAG = f"mlflow.sharedViewState.{KEY}"


def offer_view(client: MlflowClient, experiment_id: str) -> None:
    """Save the view with the experiment, where it has none yet; one that a user changed stays."""
    if _TAG not in client.get_experiment(experiment_id).tags:
        client.set_experiment_tag(experiment_id, _TAG, json.dumps(_view()))


def announce_headline(client: MlflowClient, run_id: str) -> None:
    """Make the number that tells runs apart a run's first metric, before it is known.

    MLflow's compare page opens on the metric that was logged first, which else is one of the
    machine's load. What is not measured yet is NaN, and sorts behind all that is.
    """
    client.log_metric(run_id, HEADLINE, math.nan, step=0)


def _view() -> dict[str, Any]:
    state = {
        "searchFilter": "",
        "orderByKey": SORTED_BY,
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }
    return {"name": NAME, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
