"""A timm network with pretrained weights, where these can be had.

Knows nothing about training.
"""

from pathlib import Path

import timm
import torch

from src.console import warn
from src.errors import ConfigError, DataUnavailable
from src.student.spec import StudentSpec

FROM_SCRATCH = (
    "The student starts from random weights. On 1,500 labelled CIFAR images that cost about 8 points of accuracy; "
    "give pretrained ones with student.weights=FILE, or student.pretrained=true where the hub can be reached."
)


def build(spec: StudentSpec, classes: int, *, download: bool, need_weights: bool) -> torch.nn.Module:
    """The network, with weights from `spec.weights`, else from the hub (or its cache), else none, with a warning.

    `download` allows the hub; `need_weights` makes it an error that it cannot be reached. Raises ConfigError for a
    name that timm does not know and a file that does not fit, DataUnavailable for the hub.
    """
    if not timm.is_model(spec.name):
        near = timm.list_models(f"*{spec.name.split('_')[0]}*")[:5]
        raise ConfigError("student.name", spec.name, f"a timm model, such as {', '.join(near) or 'mobilenetv3_small_100'}")
    if spec.weights:
        return _from_file(spec, classes, Path(spec.weights).expanduser())
    if spec.pretrained:
        cached = _cached(spec.name)
        if cached:
            return _create(spec.name, classes, cached)
        if download:
            try:
                return timm.create_model(spec.name, pretrained=True, num_classes=classes)
            except Exception as error:  # hub clients raise many types: requests, httpx, OSError, their own
                unreachable = DataUnavailable(
                    f"The pretrained weights of {spec.name} could not be downloaded ({str(error).splitlines()[0]}). Give "
                    "a file with student.weights=FILE, or train without with student.pretrained=false."
                )
                if need_weights:
                    raise unreachable from error
                warn(str(unreachable))
    warn(FROM_SCRATCH)
    return timm.create_model(spec.name, pretrained=False, num_classes=classes)


def _from_file(spec: StudentSpec, classes: int, path: Path) -> torch.nn.Module:
    if not path.is_file():
        raise ConfigError("student.weights", spec.weights, "a file of weights (.safetensors, or .pt with a state dict)")
    try:
        return _create(spec.name, classes, path)
    except Exception as error:  # pickle, safetensors, missing keys, other shapes
        reason = str(error).splitlines()[0][:200]
        raise ConfigError("student.weights", spec.weights, f"weights of {spec.name} ({reason})") from error


def _create(name: str, classes: int, path: Path) -> torch.nn.Module:
    """The classifier is always new: a file's own has other classes, or is missing."""
    network = timm.create_model(name, pretrained=False, num_classes=classes)
    classifier = network.default_cfg["classifier"]
    heads = (classifier,) if isinstance(classifier, str) else classifier
    fresh = {key: value.clone() for key, value in network.state_dict().items() if key.rsplit(".", 1)[0] in heads}
    state = timm.models.load_state_dict(str(path), weights_only=True)
    state = {key: value for key, value in state.items() if key not in fresh}
    network.load_state_dict({**state, **fresh}, strict=True)
    return network


def _cached(name: str) -> Path | None:
    """Where an earlier download lies; never asks the network."""
    from huggingface_hub import try_to_load_from_cache

    repository = timm.models.get_pretrained_cfg(name)
    if not repository or not repository.hf_hub_id:
        return None
    for file in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(repository.hf_hub_id, file)
        if isinstance(found, str):
            return Path(found)
    return None
