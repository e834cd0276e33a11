"""The student as a model of MLflow's: what it takes, what it answers, and how it is loaded and served."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd

from src.errors import ConfigError

SOURCE = Path(__file__).parents[1]
NOTE = "mlflow.note.content"  # tag: what the UI shows as a description
MAX_TEXT = 5000  # characters that every MLflow store takes in a description
MAX_PIXELS = 50_000_000  # of an image that a loaded model is given; larger ones are refused before decoding


class StudentModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The student as MLflow loads and serves it."""

    def load_context(self, context: Any) -> None:
        from src.student.checkpoint import load

        self.student = load(Path(context.artifacts["checkpoint"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        from src.data.images import decode

        images = [decode(payload, MAX_PIXELS) for payload in model_input["image"]]
        probabilities = self.student.predict_images(images)
        answers = probabilities.argmax(axis=1)
        frame = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in self.student.classes])
        frame.insert(0, "confidence", probabilities.max(axis=1))
        frame.insert(0, "label", [self.student.classes[n] for n in answers])
        return frame


class Logged(NamedTuple):
    """A logged model's address, and its name and version in the registry if it was registered."""

    address: str
    name: str
    version: str


def check_name(name: str) -> None:
    """Find out before anything is paid for whether the registry takes the name. Raises ConfigError."""
    if not name.strip() or set("/:") & set(name) or mlflow.MlflowClient().get_prompt(name):
        raise ConfigError("tracking.register", name, "a name without / and :, that no prompt has")


def describe(model: Logged, text: str, tags: Mapping[str, str]) -> None:
    """Let the model say what it is, and in the registry, if it is there, also how it is used."""
    client = mlflow.MlflowClient()
    client.set_logged_model_tags(model.address.removeprefix("models:/"), {NOTE: text[:MAX_TEXT], **tags})
    if not model.version:
        return
    client.update_model_version(model.name, model.version, description=text[:MAX_TEXT])
    for tag, value in tags.items():
        client.set_model_version_tag(model.name, model.version, tag, value)
    if not client.get_registered_model(model.name).description:
        client.update_registered_model(model.name, f"`python -m src.serve run={model.name}` serves the newest version, "
                                       f"`run={model.name}/{model.version}` version {model.version}, "
                                       f"`run={model.name}@champion` the one that has this alias.")


def log_student(checkpoint: Path, classes: Sequence[str], example: bytes, *, name: str | None) -> Logged:
    """Log the student with the open run as a pyfunc model, registered as `name` where one is given. Input: a column
    `image` of encoded image files, of which `example` is one; output: `label`, `confidence` and one probability column
    for each class."""
    schema = mlflow.types.Schema
    column = mlflow.types.ColSpec
    out = [column("string", "label"), column("double", "confidence")]
    out += [column("double", f"p_{name}") for name in classes]
    signature = mlflow.models.ModelSignature(schema([column("binary", "image")]), schema(out))
    info = mlflow.pyfunc.log_model(
        name="student",
        python_model=StudentModel(),
        artifacts={"checkpoint": str(checkpoint)},
        code_paths=[str(SOURCE)],
        signature=signature,
        input_example=pd.DataFrame({"image": [example]}),
        pip_requirements=_requirements(),
        registered_model_name=name,
    )
    return Logged(str(info.model_uri), name or "", str(info.registered_model_version or ""))


def _requirements() -> list[str]:
    """What the student needs where it is loaded; asking MLflow to infer it would take half a minute."""
    from importlib.metadata import version

    needed = ("torch", "torchvision", "timm", "numpy", "pandas", "pillow", "hydra-core", "omegaconf", "rich", "psutil",
              "filelock", "matplotlib", "sqlalchemy")
    return [f"{name}=={version(name).split('+')[0]}" for name in needed]


