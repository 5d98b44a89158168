"""A ResNet with augmentation, clipping, and weight decay on the weights of convolutions only."""

import torch
from project import digits, main
from torch import nn
from torch.utils.data import TensorDataset

import optuna_miha as miha

train, valid, test = digits()


class Shifted(TensorDataset):
    """Images that are shifted by up to one pixel at random."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        down, right = torch.randint(-1, 2, (2,)).tolist()
        return torch.roll(image, (down, right), dims=(1, 2)), target


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x):
        return torch.relu(x + self.layers(x))


def model_fn(trial):
    model = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(Block(12), nn.MaxPool2d(2), Block(12)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
    )
    lr = miha.suggest_float(trial, "lr", 1e-4, 3e-1, initial=1e-2, log=True)
    decay = miha.suggest_float(trial, "weight_decay", 1e-4, 1.0, initial=0.05, log=True)
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(
            label_smoothing=miha.suggest_label_smoothing(trial, initial=0.05)
        ),
        train_data=Shifted(*train),
        valid_data=valid,
        optimizer=torch.optim.AdamW(groups, lr=lr),
        batch_size=miha.suggest_batch_size(trial, initial=64),
        grad_clip=1.0,
    )


def test_accuracy(model):
    return float((model(test[0]).argmax(1) == test[1]).double().mean())


if __name__ == "__main__":
    main(model_fn, test_accuracy, name="test accuracy", n_epochs=60)
