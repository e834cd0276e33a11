"""A timm network with pretrained weights, where these can be had.

Knows nothing about training.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch

from src.console import warn
from src.errors import ConfigError, DataUnavailable
from src.student.spec import StudentSpec

FROM_SCRATCH = (
    "The student starts from random weights, which on 1,500 labelled photographs cost 8 points of accuracy. "
    "Give pretrained ones with student.weights=FILE, or student.pretrained=true in a run that may download."
)


def check(spec: StudentSpec) -> None:
    """Raise ConfigError for a name that timm does not know and a file that is not there."""
    if not timm.is_model(spec.name):
        near = timm.list_models(f"*{spec.name.split('_')[0]}*")[:5]
        raise ConfigError("student.name", spec.name, f"a timm model: {', '.join(near) or 'mobilenetv3_small_100'}, …")
    if spec.weights and not Path(spec.weights).expanduser().is_file():
        raise ConfigError("student.weights", spec.weights, "a file of weights (.safetensors, or .pt of tensors)")


def bare(name: str, classes: int, input_size: int, **options: object) -> torch.nn.Module:
    """The network as timm makes it; those built for one input size are built for this one."""
    sized = {"img_size": input_size} if timm.models.get_pretrained_cfg(name).fixed_input_size else {}
    network: torch.nn.Module = timm.create_model(name, num_classes=classes, **sized, **options)
    return network


def build(spec: StudentSpec, classes: int, *, download: bool, need_weights: bool) -> torch.nn.Module:
    """The network, with weights from `spec.weights`, else from the hub (or its cache), else none, with a warning.

    `download` allows the hub; `need_weights` makes it an error that it cannot be reached. The classifier is always
    new. Raises ConfigError for a name that timm does not know and a file that does not fit, DataUnavailable for the
    hub.
    """
    check(spec)
    create = partial(bare, spec.name, classes, spec.input_size, drop_rate=spec.drop_rate)
    network: torch.nn.Module | None = None
    if spec.weights:
        network = _from_file(create(), spec, Path(spec.weights).expanduser())
    elif spec.pretrained and (cached := _cached(spec.name)):
        network = create(pretrained=True, pretrained_cfg_overlay={"file": str(cached)})
    elif spec.pretrained and download:
        network = _from_hub(create, spec.name, need_weights)
    if network is None:
        warn(FROM_SCRATCH)
        network = create()
    for head in _heads(spec.name):
        # timm's initial classifier of a small network answers with some confidence, and at random: from scratch, on
        # 510 images, starting near even odds instead was worth 2 points of accuracy in one comparison.
        layer = network.get_submodule(head)
        assert isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        torch.nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            torch.nn.init.zeros_(layer.bias)
    return network


def _from_hub(create: Callable[..., torch.nn.Module], name: str, need_weights: bool) -> torch.nn.Module | None:
    try:
        return create(pretrained=True)
    except Exception as error:  # hub clients raise many types: requests, httpx, OSError, their own
        unreachable = DataUnavailable(
            f"The pretrained weights of {name} could not be downloaded ({str(error).splitlines()[0]}). Give a file "
            "with student.weights=FILE, or train without with student.pretrained=false."
        )
        if need_weights:
            raise unreachable from error
        warn(str(unreachable))
        return None


def _from_file(network: torch.nn.Module, spec: StudentSpec, path: Path) -> torch.nn.Module:
    if not path.is_file():
        raise ConfigError("student.weights", spec.weights, "a file of weights (.safetensors, or .pt of tensors)")
    try:
        return _load(network, spec.name, path)
    except Exception as error:  # pickle, safetensors, missing keys, other shapes
        reason = str(error).splitlines()[0][:200]
        raise ConfigError("student.weights", spec.weights, f"weights of {spec.name} ({reason})") from error


def _load(network: torch.nn.Module, name: str, path: Path) -> torch.nn.Module:
    """All weights but the classifier's, which in the file are missing or for other classes."""
    own = network.state_dict()
    head = {key for key in own if key.rsplit(".", 1)[0] in _heads(name)}
    state = timm.models.load_state_dict(str(path), weights_only=True)
    network.load_state_dict(state | {key: own[key] for key in head}, strict=True)
    return network


def _heads(name: str) -> tuple[str, ...]:
    classifier = timm.models.get_pretrained_cfg(name).classifier
    return (classifier,) if isinstance(classifier, str) else tuple(classifier or ())


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
