"""The image student: data module, augmentation, network, training step, device, checkpoint, speed."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from src.config import Job
from src.data.images import square
from src.errors import ConfigError, DataError, DataUnavailable
from src.student import device, network
from src.student.augment import Augment, normalise
from src.student.checkpoint import Trained, load
from src.student.curves import Curves
from src.student.distil import check
from src.student.fit import fit, settle
from src.student.labelled import Batches, LabelledImages, Shuffled
from src.student.module import ImageStudent, agreement
from src.student.network import build
from src.student.spec import AugmentSpec, StudentSpec
from src.task import Item, Label

NAMES = ["dark", "light"]
STILL = AugmentSpec(crop_scale=1, rotation_degrees=0, horizontal_flip=0, brightness=0, contrast=0, saturation=0, hue=0)


@pytest.fixture
def spec(make_job: Callable[..., Job]) -> StudentSpec:
    return make_job("student.pretrained=false", "student.input_size=32", "student.batch_size=8").student


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Forty pictures, dark and light in turn: any student can learn them."""
    chance = np.random.default_rng(0)
    found = []
    for n in range(40):
        pixels = np.clip(chance.normal(60 if n % 2 == 0 else 190, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        path = tmp_path / f"{n:02d}.png"
        Image.fromarray(pixels).save(path)
        found.append(Item(f"key{n:02d}", path, path.name, truth=NAMES[n % 2]))
    return found


def labels(items: list[Item]) -> dict[str, Label]:
    return {item.key: Label(item.key, item.truth, True, "somebody") for item in items}


def module_of(items: list[Item], spec: StudentSpec, **changes: object) -> LabelledImages:
    settings = {"input_size": 32, "batch_size": spec.batch_size, "sharpen": True, "max_pixels": 10_000, "seed": 0}
    return LabelledImages(items[:32], items[32:], labels(items), NAMES, **{**settings, **changes})  # type: ignore[arg-type]


def untrained(spec: StudentSpec) -> Callable[[], torch.nn.Module]:
    return partial(build, spec, len(NAMES), download=False, need_weights=False)


def test_batches_hold_what_was_labelled(items: list[Item], spec: StudentSpec) -> None:
    data = module_of(items, spec)
    data.setup("fit")
    images, targets = next(iter(data.val_dataloader()))
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.uint8
    assert targets.tolist() == [[1.0, 0.0], [0.0, 1.0]] * 4
    expected = square(Image.open(items[32].payload), 32, sharpen=True)
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected)


def test_an_epoch_shows_every_item_once_in_a_new_order() -> None:
    sampler = Shuffled(21, 4, seed=3)
    first, second = list(sampler), list(sampler)
    assert len(first) == len(sampler) == 5  # the one left over is left out: it would spoil BatchNorm's statistics
    assert all(len(batch) == 4 for batch in first) and first != second
    assert len({n for batch in first for n in batch}) == 20
    assert list(Shuffled(21, 4, seed=3)) == first
    assert sum(map(len, Shuffled(21, 4, seed=None))) == 21 and len(Shuffled(21, 4, seed=None)) == 6
    assert sorted(n for batch in Shuffled(24, 4, seed=0) for n in batch) == list(range(24))
    assert len(Shuffled(3, 3, seed=0)) == 1


def test_only_accepted_labels_are_learned(items: list[Item], spec: StudentSpec) -> None:
    some = labels(items)
    some[items[0].key] = Label(items[0].key, None, False, "somebody", "passes disagree")
    data = LabelledImages(items[:32], items[32:], some, NAMES, input_size=32, batch_size=8, sharpen=True,
                          max_pixels=10_000, seed=0)
    assert len(data.train_items) == 31 and items[0] not in data.train_items


class TestSoftLabels:
    """A label that says a probability for every class is learned as it is; the others as all on one class."""

    def test_the_target_is_what_the_label_says(self, items: list[Item], spec: StudentSpec) -> None:
        some = labels(items)
        keys = [item.key for item in items]
        some[keys[32]] = Label(keys[32], "dark", True, "m", distribution=(0.6, 0.4))
        some[keys[33]] = Label(keys[33], None, True, "m", "passes disagree", distribution=(0.5, 0.5))
        some[keys[34]] = Label(keys[34], "dark", False, "m", "confidence below 0.9", distribution=(0.9, 0.1))
        some[keys[35]] = Label(keys[35], "light", True, "human:me", "reviewed", 1.0, ("dark", "light"))
        some[keys[36]] = Label(keys[36], None, True, "m")  # says nothing that could be learned
        data = LabelledImages(items[:32], items[32:], some, NAMES, input_size=32, batch_size=8, sharpen=True,
                              max_pixels=10_000, seed=0)
        data.setup("fit")
        _, targets = next(iter(data.val_dataloader()))
        assert [item.key for item in data.validation_items] == [*keys[32:34], keys[35], *keys[37:]]
        assert torch.equal(targets, torch.tensor([[0.6, 0.4], [0.5, 0.5], [0, 1], [0, 1], [1, 0], [0, 1]]))
        some[keys[0]] = Label(keys[0], "dark", True, "m", distribution=(0.2, 0.3, 0.5))
        with pytest.raises(ValueError, match="3"):  # of a task with other classes
            LabelledImages(items[:32], items[32:], some, NAMES, input_size=32, batch_size=8, sharpen=True,
                           max_pixels=10_000, seed=0).setup("fit")

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_the_loss_is_cross_entropy_to_smoothed_probabilities(self, smoothing: float, spec: StudentSpec) -> None:
        spec.label_smoothing, spec.augment = smoothing, STILL
        chance = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=chance)
        targets = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [0.2, 0.3, 0.5]] * 2)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        with torch.no_grad():
            logarithms = network(images.float() / 255 * 2 - 1).log_softmax(1)
        smoothed = [[(1 - smoothing) * p + smoothing / 3 for p in row] for row in targets.tolist()]
        expected = -sum(p * float(logarithms[i, j]) for i, row in enumerate(smoothed) for j, p in enumerate(row)) / 6
        module = ImageStudent(network, spec, mean=(0.5,) * 3, std=(0.5,) * 3, memory_format=torch.contiguous_format,
                              seed=0)
        trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                            enable_progress_bar=False, enable_model_summary=False)
        sampler = Shuffled(6, 6, seed=0)
        trainer.fit(module, DataLoader(Batches(images, targets), batch_size=None, sampler=sampler))
        assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(expected, abs=1e-4)

    def test_agreement_is_with_the_most_probable_class(self) -> None:
        answers = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        targets = torch.tensor([[0.4, 0.3, 0.3], [0.6, 0.0, 0.4], [0.5, 0.5, 0.0], [0.1, 0.45, 0.45], [0, 0, 1.0]])
        each = [float(agreement(answers[n : n + 1], targets[n : n + 1])) for n in range(5)]
        assert each == [1, 0, 0.5, 0, 1]  # of two that share the first place, each is half right
        assert float(agreement(answers, targets)) == pytest.approx(0.5)

    def test_a_student_learns_the_probabilities(self, items: list[Item], spec: StudentSpec,
                                                make_job: Callable[..., Job], tmp_path: Path) -> None:
        says = {"dark": (0.7, 0.3), "light": (0.2, 0.8)}
        soft = {key: replace(label, distribution=says[label.label or ""]) for key, label in labels(items).items()}
        spec.learning_rate, spec.label_smoothing, spec.weight_decay, spec.augment = 0.05, 0.0, 0.0, STILL
        trainer = make_job("trainer.max_epochs=25", "trainer.patience=0", "trainer.accelerator=cpu").trainer
        data = LabelledImages(items[:32], items[32:], soft, NAMES, input_size=32, batch_size=4, sharpen=False,
                              max_pixels=10_000, seed=0)
        curves: list[dict[str, float]] = []
        fit(data, lambda: torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                                              torch.nn.Linear(3, 2)),
            spec, trainer, seed=0, logger=Curves(lambda values, step=None: curves.append(dict(values))),
            checkpoints=tmp_path / "ckpt")
        last = [values for values in curves if "val/loss" in values][-1]
        # Cross-entropy is least, and then the entropy of the targets, where the answers are the targets themselves.
        entropy = -np.mean([p * math.log(p) for target in says.values() for p in target]) * 2
        assert last["val/teacher_agreement"] == 1
        assert entropy - 1e-6 <= last["val/loss"] == pytest.approx(entropy, abs=0.01)


def test_too_few_labels_are_named(items: list[Item], spec: StudentSpec) -> None:
    with pytest.raises(DataError, match=r"0 accepted label\(s\) in the validation part are too few"):
        LabelledImages(items, [], labels(items), NAMES, input_size=32, batch_size=8, sharpen=True, max_pixels=10_000,
                       seed=0)


def test_a_gather_is_the_batch() -> None:
    images, targets = torch.arange(12).reshape(6, 2), torch.eye(6)
    got, wanted = Batches(images, targets)[[4, 1]]
    assert got.tolist() == [[8, 9], [2, 3]] and wanted.argmax(1).tolist() == [4, 1]


class TestAugment:
    images = torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    still = Augment(crop_scale=1, rotation_degrees=0, brightness=0, contrast=0, saturation=0, hue=0)

    def test_nothing_to_do_is_plain_normalisation(self) -> None:
        views = self.still(self.images, torch.Generator().manual_seed(0))
        assert torch.allclose(views, normalise(self.images), atol=1e-4)

    def test_normalisation_is_torchvisions(self) -> None:
        from torchvision.transforms.functional import normalize

        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        expected = normalize(self.images.float() / 255, list(mean), list(std))
        assert torch.allclose(normalise(self.images, mean, std), expected, atol=1e-5)

    def test_a_certain_flip_is_a_mirror(self) -> None:
        mirrored = Augment(crop_scale=1, rotation_degrees=0, brightness=0, contrast=0, saturation=0, hue=0,
                           horizontal_flip=1)(self.images, torch.Generator().manual_seed(0))
        assert torch.allclose(mirrored, normalise(self.images).flip(3), atol=1e-4)

    @pytest.mark.parametrize("change", ["brightness", "contrast", "saturation"])
    def test_colour_changes_are_torchvisions(self, change: str) -> None:
        from torchvision.transforms.functional import adjust_brightness, adjust_contrast, adjust_saturation

        references = {"brightness": adjust_brightness, "contrast": adjust_contrast, "saturation": adjust_saturation}
        reference = references[change]
        # A grey-ish picture: torchvision clips what leaves [0, 1], the linear form does not.
        picture = (torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.35)
        quiet = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
        jitter = Augment(crop_scale=1, rotation_degrees=0, mean=(0, 0, 0), std=(1, 1, 1), **{**quiet, change: 0.4})
        seen = jitter(picture, torch.Generator().manual_seed(5))
        errors = [float((reference(picture, factor) - seen).abs().max()) for factor in np.linspace(0.6, 1.4, 1601)]
        assert min(errors) < 2e-3
        assert float((picture - seen).abs().max()) > 0.01

    def test_same_generator_same_views_and_each_image_its_own(self) -> None:
        same = self.images[:1].expand(6, -1, -1, -1)
        first = Augment()(same, torch.Generator().manual_seed(2))
        assert torch.equal(first, Augment()(same, torch.Generator().manual_seed(2)))
        assert not torch.equal(first, Augment()(same, torch.Generator().manual_seed(3)))
        assert not torch.allclose(first[0], first[1])

    def test_the_memory_format_stays(self) -> None:
        views = Augment()(self.images.contiguous(memory_format=torch.channels_last), torch.Generator().manual_seed(0))
        assert views.is_contiguous(memory_format=torch.channels_last)


def test_texts_are_refused_before_they_are_paid_for(spec: StudentSpec, make_job: Callable[..., Job]) -> None:
    trainer = make_job("trainer.accelerator=cpu").trainer
    check(spec, trainer, "images")
    with pytest.raises(ConfigError, match=r"data\.kind='texts' is not allowed: images, since there is no student for "
                                          r"texts yet; they can be labelled \(python -m src\.label\), checked and rev"):
        check(spec, trainer, "texts")


class TestDevice:
    @pytest.mark.parametrize(("mps", "cuda", "expected"), [(True, True, "mps"), (False, True, "cuda"),
                                                           (False, False, "cpu")])
    def test_auto_takes_the_best_there_is(self, mps: bool, cuda: bool, expected: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        assert device.resolve("auto") == expected

    def test_one_that_is_not_there_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(ConfigError, match=r"accelerator='cuda' is not allowed: on this machine one of auto, cpu"):
            device.resolve("cuda")

    def test_channels_last_everywhere_but_on_mps(self) -> None:
        assert device.memory_format("mps") == torch.contiguous_format
        assert device.memory_format("cpu") == device.memory_format("cuda") == torch.channels_last


class TestNetwork:
    def test_weights_from_a_file_of_other_classes(self, spec: StudentSpec, tmp_path: Path) -> None:
        other = timm.create_model(spec.name, num_classes=7)
        path = tmp_path / "weights.pt"
        torch.save(other.state_dict(), path)
        spec.weights = str(path)
        built = build(spec, 2, download=False, need_weights=False)
        assert torch.equal(built.get_parameter("conv_stem.weight"), other.get_parameter("conv_stem.weight"))
        assert built.get_parameter("classifier.weight").shape[0] == 2

    def test_a_file_without_a_classifier_fits(self, spec: StudentSpec, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        state = {k: v for k, v in timm.create_model(spec.name).state_dict().items() if not k.startswith("classifier")}
        save_file(state, tmp_path / "w.safetensors")
        spec.weights = str(tmp_path / "w.safetensors")
        built = build(spec, 3, download=False, need_weights=False)
        assert torch.equal(built.get_parameter("conv_stem.weight"), state["conv_stem.weight"])

    @pytest.mark.parametrize("content", [b"", b"no tensors", None])
    def test_a_file_that_is_none_is_refused(self, content: bytes | None, spec: StudentSpec, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        if content is not None:
            path.write_bytes(content)
        spec.weights = str(path)
        with pytest.raises(ConfigError, match=r"student\.weights='.*w\.safetensors' is not allowed"):
            build(spec, 2, download=False, need_weights=False)

    def test_weights_of_another_network_are_refused(self, spec: StudentSpec, tmp_path: Path) -> None:
        torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "w.pt")
        spec.weights = str(tmp_path / "w.pt")
        with pytest.raises(ConfigError, match="weights of mobilenetv3_small_100"):
            build(spec, 2, download=False, need_weights=False)

    def test_an_unknown_name_is_refused_with_neighbours(self, spec: StudentSpec) -> None:
        spec.name = "mobilenetv3_smal"
        with pytest.raises(ConfigError, match=r"student\.name='mobilenetv3_smal' is not allowed: a timm model: mobile"):
            build(spec, 2, download=False, need_weights=False)

    def test_an_unreachable_hub_warns_in_rehearsal_and_stops_a_real_run(
        self, spec: StudentSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        spec.pretrained = True
        monkeypatch.setattr(network, "_cached", lambda name: None)
        real = timm.create_model

        def unreachable(name: str, *, pretrained: bool = False, **options: object) -> torch.nn.Module:
            if pretrained:
                raise OSError("no route to the hub")
            return real(name, **options)

        monkeypatch.setattr(timm, "create_model", unreachable)
        with pytest.raises(DataUnavailable, match="no route to the hub"):
            build(spec, 2, download=True, need_weights=True)
        build(spec, 2, download=True, need_weights=False)
        told = capsys.readouterr().out
        assert "no route to the hub" in told and "starts from random weights" in told

    def test_without_leave_to_download_the_hub_is_not_asked(self, spec: StudentSpec, monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
        spec.pretrained = True
        monkeypatch.setattr(network, "_cached", lambda name: None)
        monkeypatch.setattr(network, "_from_hub", lambda *_: pytest.fail("asked the hub"))
        build(spec, 2, download=False, need_weights=False)
        assert "starts from random weights" in capsys.readouterr().out


def test_a_network_of_one_size_is_built_for_the_size_asked(spec: StudentSpec) -> None:
    spec.name, spec.input_size = "vit_tiny_patch16_224", 64
    built = build(spec, 3, download=False, need_weights=False).eval()
    assert built(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_training_that_diverges_is_named(items: list[Item], spec: StudentSpec, make_job: Callable[..., Job],
                                         tmp_path: Path) -> None:
    spec.learning_rate = 1e30
    trainer = make_job("trainer.max_epochs=2", "trainer.accelerator=cpu").trainer
    with pytest.raises(ConfigError, match=r"student\.learning_rate=1e\+30 is not allowed: a lower one: it diverged"):
        fit(module_of(items, spec), untrained(spec), spec, trainer, seed=0, logger=None, checkpoints=tmp_path)


def test_biases_and_norms_do_not_decay(spec: StudentSpec) -> None:
    module = ImageStudent(timm.create_model(spec.name, num_classes=2), spec, mean=(0.5,) * 3, std=(0.5,) * 3,
                          memory_format=torch.channels_last, seed=0)
    module.trainer = SimpleNamespace(estimated_stepping_batches=10)  # type: ignore[assignment]
    groups = module.configure_optimizers()["optimizer"].param_groups  # type: ignore[index,call-overload]
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in module.network.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else spec.weight_decay), name


def test_mixup_blends_images_and_targets_alike(spec: StudentSpec) -> None:
    spec.mixup = 0.5
    module = ImageStudent(timm.create_model(spec.name, num_classes=2), spec, mean=(0.5,) * 3, std=(0.5,) * 3,
                          memory_format=torch.channels_last, seed=0)
    # An image that is its target all over: after blending it must still be.
    targets = torch.eye(8)
    views = targets.reshape(8, 8, 1, 1).expand(8, 8, 2, 2)
    mixed, blended = module._mixed(views, targets)
    assert torch.allclose(mixed[:, :, 0, 0], blended) and torch.allclose(blended.sum(1), torch.ones(8))
    assert not torch.equal(blended, targets)


@pytest.fixture
def trained(items: list[Item], spec: StudentSpec, make_job: Callable[..., Job], tmp_path: Path) -> Trained:
    spec.learning_rate = 2e-3
    trainer = make_job("trainer.max_epochs=20", "trainer.patience=0", "trainer.accelerator=cpu").trainer
    curves: list[dict[str, float]] = []
    data = module_of(items, spec)
    fitted = fit(data, untrained(spec), spec, trainer, seed=0,
                 logger=Curves(lambda values, step=None: curves.append(dict(values))), checkpoints=tmp_path / "ckpt")
    history = [values["val/teacher_agreement"] for values in curves if "val/teacher_agreement" in values]
    assert len(history) == 20 and history[fitted.best_epoch - 1] == max(history)
    images, targets = data.validation
    with torch.no_grad():
        answers = fitted.network(normalise(images, fitted.mean, fitted.std)).argmax(1)
    assert fitted.val_agreement == pytest.approx((answers == targets.argmax(1)).float().mean().item())
    assert not any(name.startswith("test") for values in curves for name in values)
    return Trained(fitted.network, spec.name, NAMES, 32, fitted.mean, fitted.std, True, "shades", 1)


def test_batchnorms_statistics_are_those_of_the_training_images(items: list[Item], spec: StudentSpec) -> None:
    data = module_of(items, spec)
    data.setup("fit")
    network = timm.create_model(spec.name, num_classes=2)
    module = ImageStudent(network, spec, mean=(0.5,) * 3, std=(0.5,) * 3, memory_format=torch.channels_last, seed=0)
    first = next(layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda layer, given: seen.append(given[0]) if layer.training else None)
    before = {name: value.clone() for name, value in network.named_parameters()}
    settle(module, data)
    into = torch.cat(seen).transpose(0, 1).flatten(1)
    assert len(torch.cat(seen)) == len(data.train_items)
    assert torch.allclose(first.running_mean, into.mean(1), atol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(first.running_var, into.var(1), rtol=1e-3)  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
    assert first.momentum == 0.1 and not network.training


def test_it_learns_and_survives_the_disk(trained: Trained, items: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "mobilenet.pt"
    trained.save(path)
    raw = torch.load(path, weights_only=True)  # tensors and plain values only
    assert raw["classes"] == NAMES and raw["input_size"] == 32
    again = load(path)
    pictures = [Image.open(item.payload) for item in items]
    probabilities = again.predict_images(pictures)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert np.allclose(probabilities, trained.predict_images(pictures), atol=1e-6)
    right = np.mean([NAMES[n] == item.truth for n, item in zip(probabilities.argmax(axis=1), items, strict=True)])
    assert right >= 0.9
    both = replace(again, flip_average=True).predict_images(pictures)
    mirrored = again.predict_images([ImageOps.mirror(picture) for picture in pictures])
    assert np.allclose(both, (probabilities + mirrored) / 2, atol=1e-6)
    assert again.predict(torch.zeros((0, 3, 32, 32), dtype=torch.uint8)).shape == (0, 2)


@pytest.mark.parametrize("saved", [b"nothing", {"other": 1}, {"format": 99}])
def test_a_file_that_is_no_student_is_refused(saved: object, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if isinstance(saved, bytes):
        path.write_bytes(saved)
    else:
        torch.save(saved, path)
    with pytest.raises(DataError, match=r"x\.pt (is not a student's checkpoint|has format 99)"):
        load(path)


def test_a_checkpoint_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    stream = io.BytesIO()
    torch.save({"format": 1, "state_dict": Evil()}, stream)
    (tmp_path / "x.pt").write_bytes(stream.getvalue())
    with pytest.raises(DataError):
        load(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_the_same_seed_trains_the_same(items: list[Item], spec: StudentSpec, make_job: Callable[..., Job],
                                       tmp_path: Path) -> None:
    trainer = make_job("trainer.max_epochs=1", "trainer.accelerator=cpu").trainer

    def loss(seed: int, where: str) -> float:
        return fit(module_of(items, spec, seed=seed), untrained(spec), spec, trainer, seed=seed, logger=None,
                   checkpoints=tmp_path / where).val_loss

    first = loss(1, "a")
    assert math.isclose(first, loss(1, "b"), rel_tol=1e-7) and not math.isclose(first, loss(2, "c"), rel_tol=1e-6)
