"""A U-Net that finds discs in noise, with a Dice term in the loss and IoU as the metric."""

import torch
from project import main
from torch import nn

import optuna_miha as miha


def discs(n, seed):
    """Noisy images of 16x16 pixels with a disc, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    centre = 4 + 8 * torch.rand(n, 2, 1, 1, generator=generator)
    radius = 2 + 3 * torch.rand(n, 1, 1, generator=generator)
    grid = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij"))
    masks = (((grid - centre) ** 2).sum(1) < radius**2).float()[:, None]
    return masks + 0.8 * torch.randn(n, 1, 16, 16, generator=generator), masks


train, valid, test = (discs(n, seed) for seed, n in enumerate([200, 100, 200]))
entropy = nn.BCEWithLogitsLoss()


def layer(before, after):
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = layer(1, 8), layer(24, 8)
        self.bottom = nn.Sequential(nn.MaxPool2d(2), layer(8, 16), nn.Upsample(scale_factor=2))
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        fine = self.down(x)
        return self.head(self.up(torch.cat([fine, self.bottom(fine)], dim=1)))


class IoU:
    """Intersection over union of all pixels, added up by batches."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.both = self.either = 0.0

    def update(self, outputs, targets):
        self.both += float(((outputs > 0) & (targets > 0.5)).sum())
        self.either += float(((outputs > 0) | (targets > 0.5)).sum())

    def compute(self):
        return self.both / max(self.either, 1.0)


def model_fn(trial):
    model, share = UNet(), miha.suggest_float(trial, "dice_weight", 0.0, 1.0, initial=0.3)

    def loss_fn(outputs, targets):
        found = outputs.sigmoid()
        dice = 1 - 2 * (found * targets).sum() / (found.sum() + targets.sum())
        return (1 - share) * entropy(outputs, targets) + share * dice

    optimizer = miha.suggest_optimizer(trial, model.parameters(), initial="adamw")
    data = {"train_data": train, "valid_data": valid, "valid_batch_size": 50}
    metrics = {"metrics": {"iou": IoU()}, "monitor": "iou"}
    return miha.Recipe(model=model, loss_fn=loss_fn, optimizer=optimizer, **data, **metrics)


def test_iou(model):
    iou = IoU()
    iou.update(model(test[0]), test[1])
    return iou.compute()


if __name__ == "__main__":
    main(model_fn, test_iou, name="test IoU", n_epochs=40, direction="maximize")
