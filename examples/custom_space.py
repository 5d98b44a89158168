"""A custom search space: everything that `model_fn` suggests can change during training.

Trains a small convolutional network on scikit-learn's digits. In addition to activations,
optimizer and batch size, `model_fn` suggests a dropout rate, the training loss, label smoothing,
the strength of the noise that augments the training images, and the kind of pooling. The study
maximizes accuracy, the training data come from a DataLoader, and a callback reports every branch.

Prints one line per branch, a summary of the run, and the test accuracy. Takes half a minute on one
core.
"""

import argparse

import optuna
import torch
from optuna.trial import FrozenTrial
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import optuna_miha as miha

POOLING = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
labels = torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, valid, test = order.split([1077, 360, 360])


class NoisyDigits(Dataset[tuple[Tensor, Tensor]]):
    """The training digits with new noise at every access."""

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return len(train)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = images[train[index]]
        return image + self.noise * torch.randn_like(image), labels[train[index]]


def model_fn(trial: optuna.Trial) -> miha.Recipe:
    pooling = POOLING[trial.suggest_categorical("pooling", ["max", "avg"])]
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        pooling(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        pooling(2),
        nn.Flatten(),
        nn.Dropout(trial.suggest_float("dropout", 0.0, 0.6)),
        nn.Linear(128, 10),
    )
    miha.suggest_activations(trial, model)
    smoothing = trial.suggest_float("label_smoothing", 0.0, 0.3)
    losses = {
        "cross_entropy": nn.CrossEntropyLoss(label_smoothing=smoothing),
        "multi_margin": nn.MultiMarginLoss(),
    }
    noise = trial.suggest_float("noise", 0.0, 0.5)
    return miha.Recipe(
        model=model,
        loss_fn=miha.suggest_loss(trial, choices=losses),
        optimizer=miha.suggest_optimizer(trial, model.parameters()),
        batch_size=miha.suggest_batch_size(trial),
        train_data=DataLoader(NoisyDigits(noise), shuffle=True),
        valid_data=(images[valid], labels[valid]),
        monitor="accuracy",
    )


def report(study: optuna.Study, trial: FrozenTrial) -> None:
    attrs = trial.user_attrs
    if attrs["miha:role"] == "branch":
        outcome = f"{trial.value} ({trial.state.name.lower()})"
        print(f"cycle {attrs['miha:cycle']}, {attrs['miha:mutation']}: {outcome}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--n-epochs", type=int, default=200, help="total budget, including all branches"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--storage", default="sqlite:///custom_space.db", help='"" for a study in memory'
    )
    args = parser.parse_args()

    study = optuna.create_study(
        storage=args.storage or None,
        study_name=f"digits-{args.seed}",
        direction="maximize",
        load_if_exists=True,
        sampler=miha.MihaSampler(seed=args.seed),
        pruner=miha.SlopePruner(),
    )
    result = miha.optimize(
        study,
        model_fn,
        n_epochs=args.n_epochs,
        # Without these values, the custom suggestions start in the middle of their range.
        initial_params={"dropout": 0.0, "label_smoothing": 0.0, "noise": 0.0},
        callbacks=[report],
        show_progress_bar=False,
    )

    print(result.describe())
    with torch.no_grad():
        predicted = result.model.cpu()(images[test]).argmax(dim=1)
    print(f"test accuracy: {(predicted == labels[test]).double().mean():.4f}")


if __name__ == "__main__":
    main()
