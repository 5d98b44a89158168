"""Fine-tuning in 25 epochs: a frozen stem, and rates of their own for the body and a new head."""

import copy

import torch
from project import digits, main
from torch import nn

import optuna_miha as miha

train, valid, test = digits()


def only(data, classes):
    """The samples of some classes, which are counted from 0."""
    images, targets = data
    chosen = (targets >= classes.start) & (targets < classes.stop)
    return images[chosen], targets[chosen] - classes.start


def pretrained():
    """A network that knows the digits 0 to 4."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()),
        nn.Linear(256, 5),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    images, targets = only(train, range(5))
    for _ in range(20):
        for rows in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), targets[rows]).backward()
            optimizer.step()
    return model


PRETRAINED = pretrained()


def model_fn(trial):
    model = copy.deepcopy(PRETRAINED)
    stem, body = model[:4], model[4:8]
    stem.requires_grad_(False)
    stem.eval()  # Modules in evaluation mode stay in it: batch norm keeps its statistics.
    model[8] = nn.Linear(256, 5)
    body_lr = miha.suggest_float(trial, "lr.body", 1e-6, 1e-1, initial=3e-4, log=True)
    head_lr = miha.suggest_float(trial, "lr.head", 1e-5, 1e-1, initial=3e-3, log=True)
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        train_data=only(train, range(5, 10)),
        valid_data=only(valid, range(5, 10)),
        optimizer=torch.optim.AdamW(
            [
                {"params": body.parameters(), "lr": body_lr},
                {"params": model[8].parameters(), "lr": head_lr},
            ]
        ),
        batch_size=miha.suggest_batch_size(trial, initial=32),
    )


def test_accuracy(model):
    images, targets = only(test, range(5, 10))
    return float((model(images).argmax(1) == targets).double().mean())


if __name__ == "__main__":
    main(model_fn, test_accuracy, name="test accuracy", n_epochs=25)
