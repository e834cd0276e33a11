"""Prompts in MLflow's registry: one version for each text that was ever sent."""

import re
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from src.console import warn
from src.tracking.server import client_of, in_turn

DIGEST = "prompt_hash"  # tag of a version, and of the runs that sent it
TEMPLATE = "template"  # tag of a version
MAX_TAG = 5000  # characters


def register(name: str, *, system: str, user: str, schema: Mapping[str, Any], digest: str, template: str,
             experiment: str, run_id: str, run_name: str) -> str | None:
    """The address of the version whose hash is `digest`, made where there is none, and linked with the run. A version
    holds the texts as sent, and in a tag the user's `template`, with its placeholders. `experiment` is the id of the
    run's. None where the server keeps no prompts: a run is worth having without."""
    name = re.sub(r"[^\w.-]", "-", name)
    uri = mlflow.get_tracking_uri()
    client = client_of(uri)
    try:
        with in_turn(uri):  # the jobs of a sweep register the same one
            found = _version(client, name, digest)
            if found is None:
                mlflow.set_experiment(experiment_id=experiment)  # below whose prompts the UI shows it
                found = client.register_prompt(
                    name, [{"role": "system", "content": system}, {"role": "user", "content": user}],
                    commit_message=f"First sent by {run_name} ({run_id}).", response_format=dict(schema),
                    tags={DIGEST: digest, TEMPLATE: template[:MAX_TAG]},
                )
                for tag in (DIGEST, TEMPLATE):  # MLflow sets them for the prompt as a whole, too, which has no one hash
                    client.delete_prompt_tag(name, tag)
        client.link_prompt_version_to_run(run_id, found)
        return str(found.uri)
    except MlflowException as error:
        warn(f"The prompt is not in MLflow's registry ({str(error).splitlines()[0][:200]}); prompt.txt has it.")
        return None


def _version(client: mlflow.MlflowClient, name: str, digest: str) -> Any:
    if client.get_prompt(name) is None:
        return None
    page: str | None = None
    while True:
        found = client.search_prompt_versions(name, max_results=100, page_token=page)
        for version in found:
            if version.tags.get(DIGEST) == digest:
                return version
        page = getattr(found, "token", None)
        if not page:
            return None
