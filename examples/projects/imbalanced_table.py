"""A table in dictionaries with numbers and a category, rare positives, and ROC AUC."""

import torch
from project import main
from torch import nn
from torch.utils.data import Dataset

import optuna_miha as miha

generator = torch.Generator().manual_seed(0)
numbers = torch.randn(3000, 8, generator=generator)
categories = torch.randint(0, 5, (3000,), generator=generator)
score = numbers[:, 0] * numbers[:, 1] + numbers[:, 2] + 0.5 * categories
score += torch.randn(3000, generator=generator)
labels = (score > score.quantile(0.92)).float()


class Table(Dataset):
    """Rows as dictionaries; the network gets them by name, without the labels."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return {"numbers": numbers[row], "category": categories[row], "labels": labels[row]}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layers = nn.Sequential(
            nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1)
        )

    def forward(self, numbers, category):
        inputs = torch.cat([numbers, self.embedding(category)], dim=1)
        return self.layers(inputs).squeeze(1)


def roc_auc(outputs, targets):
    """The share of pairs of a positive and a negative in the right order."""
    positive, negative = outputs[targets > 0.5], outputs[targets < 0.5]
    return (positive[:, None] > negative).double().mean()


def model_fn(trial):
    model = Network()
    miha.suggest_dropout(trial, model)
    weight = miha.suggest_float(trial, "positive_weight", 1.0, 20.0, initial=5.0, log=True)
    return miha.Recipe(
        model=model,
        loss_fn=nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight)),
        valid_loss_fn=nn.BCEWithLogitsLoss(),
        train_data=Table(range(1500)),
        valid_data=Table(range(1500, 2200)),
        optimizer=miha.suggest_optimizer(trial, model.parameters(), initial="adamw"),
        batch_size=miha.suggest_batch_size(trial, initial=64),
        metrics={"roc_auc": roc_auc},
        monitor="roc_auc",
    )


def test_roc_auc(model):
    rows = slice(2200, 3000)
    return float(roc_auc(model(numbers[rows], categories[rows]), labels[rows]))


if __name__ == "__main__":
    main(model_fn, test_roc_auc, name="test ROC AUC", n_epochs=60, direction="maximize")
