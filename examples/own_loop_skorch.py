"""A skorch training loop on handwritten digits; the result is a scikit-learn estimator."""

import argparse

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn

import optuna_miha as miha
from optuna_miha.integrations.skorch import SkorchTrainer

digits = load_digits()
x, y = (digits.data / 16).astype("float32"), digits.target
x, x_test, y, y_test = train_test_split(x, y, test_size=360, random_state=0)
x, x_valid, y, y_valid = train_test_split(x, y, test_size=360, random_state=0)


trainer = SkorchTrainer(monitor="valid_loss")


def model_fn(trial):
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=trial.suggest_float("weight_decay", 0.0, 0.1),
        lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        batch_size=32,
        iterator_train__shuffle=True,
        train_split=predefined_split(Dataset(x_valid, y_valid)),
        verbose=0,
    )
    return trainer.recipe(net, x, y)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=200)
    storage, sampler = "sqlite:///own_loop_skorch.db", miha.MihaSampler(seed=0)
    study = optuna.create_study(
        storage=storage, study_name="digits", load_if_exists=True, sampler=sampler
    )
    n_epochs = parser.parse_args().n_epochs
    result = miha.optimize(study, model_fn, n_epochs=n_epochs, trainer=trainer, device="cpu")
    estimator = NeuralNetClassifier(result.model, criterion=nn.CrossEntropyLoss, classes=range(10))
    estimator.initialize()
    print(f"test accuracy: {estimator.score(x_test, y_test):.4f}")
