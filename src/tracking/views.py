"""What MLflow's UI offers below "Views": runs side by side, with the columns and charts that people would pick by hand.

A saved view is a tag of the experiment that holds the page's state as the UI writes it (MLflow 3.17; documented
nowhere). A UI that does not know the state says so and shows its own page, so that nothing is lost with it. Knows
nothing about runs but the names of their figures.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow

TRAININGS = "flywheel-trainings"  # key of the view of all trainings of an experiment
SWEEP = "flywheel-sweep-"  # of a sweep, by the first characters of its run's id
MOST_SWEEPS = 20  # the UI takes 40 views, and some are to be the user's
AXES = ("labeler.max_items", "student.input_size", "seed")
PICTURES = ("confusion_test", "mistakes_test")
CURVES = ("train/loss", "val/loss", "val/teacher_agreement")
TAGS = ("rehearsal", "teacher", "student")
NOTE = "mlflow.note.content"
_TAG = "mlflow.sharedViewState."
# Folded away until somebody wants to know; the UI makes a chart of every metric there is.
_FOLDED = ("calibration", "calibration_test", "data", "gold", "gold_f1", "label", "label/outcome", "latency", "test",
           "test_f1", "throughput", "train", "val", "images")


def link(experiment: str, key: str) -> str:
    """Where the view stands, within the UI."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={key}&compareRunsMode=CHART"


def key_of(sweep: str) -> str:
    return f"{SWEEP}{sweep[:8]}"


def offer(client: mlflow.MlflowClient, experiment: str, *, metric: str, sweep: str = "", sweep_name: str = "",
          swept: Sequence[str] = ()) -> None:
    """Save the view of all trainings, and that of a sweep's jobs with its `swept` keys as axes, where the experiment
    has them not. `sweep` is the id of its run. Runs are compared by the task's `metric`."""
    found = client.get_experiment(experiment)
    _save(client, found, TRAININGS, "Trainings", state(metric, "tags.`flywheel.stage` = 'train'", AXES))
    if sweep:
        condition = f"tags.`mlflow.parentRunId` = '{sweep}'"
        _save(client, found, key_of(sweep), sweep_name, state(metric, condition, swept or AXES))
        _forget_the_oldest(client, found)
    if NOTE not in found.tags:
        client.set_experiment_tag(experiment, NOTE, f"[Compare trainings]({link(experiment, TRAININGS)}). Sweeps and "
                                  "other ways to look stand below Views.")


def state(metric: str, condition: str, axes: Sequence[str]) -> dict[str, Any]:
    """The state of the page: which runs, which columns, which charts. The best on gold stand first; by their start, as
    the UI would have it, the jobs of a sweep would be folded away below it."""
    headline = ["val/teacher_agreement", f"gold/{metric}", f"test/{metric}"]
    bars = [*headline[1:], "label/gold_accuracy", "label/agreement", "label/cost_usd", "test/ece",
            "test/coverage_at_precision_95", "throughput/items_per_second"]
    charts = [
        _chart("PARALLEL", "axes", "flywheel-headline", showAllRuns=False, selectedMetrics=[headline[0], headline[-1]],
               selectedParams=[axis for axis in axes if axis != "seed"] or list(axes)),
        *(_chart("BAR", name, "flywheel-headline", metricKey=name, displayName=name) for name in bars),
        *(_chart("LINE", name, "flywheel-curves", metricKey=name, displayName=name, xAxisKey="step",
                 xAxisScaleType="linear", scaleType="linear", lineSmoothness=0, range={}, yAxisKey="metric",
                 yAxisExpressions=[], ignoreOutliers=False, useGlobalXaxisKey=False, useGlobalLineSmoothing=False,
                 selectedXAxisMetricKey="") for name in CURVES),
        *(_chart("IMAGE", name, "flywheel-pictures", imageKeys=[name], step=0, showRunParams=False, displayName=name)
          for name in PICTURES),
    ]
    sections = [_section("flywheel-headline", "Headline"),
                _section("flywheel-curves", "Curves by epoch; validation's last point is the student that was kept"),
                _section("flywheel-pictures", "Pictures"),
                *(_section(f"flywheel-{name}", name, shown=False) for name in (*_FOLDED, "Model metrics"))]
    columns = [*(f"tags.`{name}`" for name in TAGS), *(f"params.`{name}`" for name in axes),
               *(f"metrics.`{name}`" for name in [*headline, "label/gold_accuracy", "label/cost_usd"])]
    return {"searchFilter": condition, "orderByKey": f"metrics.`gold/{metric}`", "orderByAsc": False,
            "startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
            "selectedColumns": columns, "columnOrder": [], "columnWidths": {}, "runsHiddenMode": "FIRST_20_RUNS",
            "compareRunCharts": charts, "compareRunSections": sections, "viewMaximized": False,
            "runListHidden": False, "isAccordionReordered": True, "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True, "groupBy": None, "groupsExpanded": {},
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""}}


def _chart(kind: str, name: str, section: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "uuid": f"{section}-{name}", "runsCountToCompare": 20, "metricSectionId": section,
            "deleted": False, "isGenerated": False, **more}


def _section(uuid: str, name: str, *, shown: bool = True) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": shown, "isReordered": False, "deleted": False, "isGenerated": False}


def _save(client: mlflow.MlflowClient, experiment: Any, key: str, name: str, state: Mapping[str, Any]) -> None:
    """Written once, and again where another version of Flywheel has other charts."""
    wanted, kept = json.dumps(state), experiment.tags.get(_TAG + key)
    if kept and json.loads(kept).get("state") == wanted:
        return
    now = int(time.time() * 1000)
    client.set_experiment_tag(experiment.experiment_id, _TAG + key,
                              json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": wanted}))


def _forget_the_oldest(client: mlflow.MlflowClient, experiment: Any) -> None:
    ours = {tag: json.loads(text).get("createdAt", 0) for tag, text in experiment.tags.items()
            if tag.startswith(_TAG + SWEEP)}
    for tag in sorted(ours, key=ours.__getitem__)[:-MOST_SWEEPS]:
        client.delete_experiment_tag(experiment.experiment_id, tag)
