"""How an image student learns: the LightningModule.

Knows nothing about files, labels' origin or tracking; what it logs are numbers under the project's names.
"""

from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_weight_decay
from torch import Tensor
from torch.nn import functional as F

from src.student.augment import Augment, normalise
from src.student.spec import StudentSpec


class ImageStudent(L.LightningModule):
    """Cross-entropy to class probabilities over augmented batches; AdamW with warm-up and cosine decay.

    Label smoothing moves its share of every target, hard or soft, to the uniform distribution. Validation targets are
    labels too, so what is measured there is agreement with the teacher, not accuracy.
    """

    def __init__(self, network: torch.nn.Module, spec: StudentSpec, *, mean: Sequence[float], std: Sequence[float],
                 memory_format: torch.memory_format, seed: int) -> None:
        super().__init__()
        self.network = network.to(memory_format=memory_format)
        self.spec = spec
        self.mean, self.std = tuple(mean), tuple(std)
        a = spec.augment
        self.augment = Augment(
            crop_scale=a.crop_scale, rotation_degrees=a.rotation_degrees, horizontal_flip=a.horizontal_flip,
            brightness=a.brightness, contrast=a.contrast, saturation=a.saturation, hue=a.hue, mean=mean, std=std,
        )
        self._format = memory_format
        self._chance = torch.Generator().manual_seed(seed)

    def forward(self, images: Tensor) -> Tensor:
        """N×3×H×W bytes → N×C logits."""
        logits: Tensor = self.network(normalise(images, self.mean, self.std).contiguous(memory_format=self._format))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, targets = batch
        views = self.augment(images, self._chance).contiguous(memory_format=self._format)
        if self.spec.mixup:
            views, targets = self._mixed(views, targets)
        loss = F.cross_entropy(self.network(views), targets, label_smoothing=self.spec.label_smoothing)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        self.log("train/step_loss", loss, on_step=True, on_epoch=False, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, targets = batch
        logits = self(images)
        self.log("val/loss", F.cross_entropy(logits, targets), batch_size=len(images))
        self.log("val/teacher_agreement", agreement(logits, targets), batch_size=len(images))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = param_groups_weight_decay(self.network, weight_decay=self.spec.weight_decay)  # none on biases, norms
        optimizer = torch.optim.AdamW(groups, lr=self.spec.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(self.spec.warmup_share * steps)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup))
        schedule: torch.optim.lr_scheduler.LRScheduler = cosine
        if warmup:
            rise = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
            schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, cosine], [warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _mixed(self, views: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """MixUp (Zhang et al., 2018): each image and its target blended with another's, one share for the batch."""
        share = torch.distributions.Beta(self.spec.mixup, self.spec.mixup).sample().item()
        other = torch.randperm(len(views), generator=self._chance).to(views.device)
        return views.lerp(views[other], 1 - share), targets.lerp(targets[other], 1 - share)


def agreement(logits: Tensor, targets: Tensor) -> Tensor:
    """How often the most probable class of the logits is that of the targets, both N×C.

    Where a target has several such classes, as after passes that disagree, each of them counts as its share: the mean
    over all ways to break the tie, and not what the order of the classes makes of it.
    """
    best = targets > targets.amax(1, keepdim=True) - 1e-6
    return (best.gather(1, logits.argmax(1, keepdim=True)).squeeze(1) / best.sum(1)).mean()
