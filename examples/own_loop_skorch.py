"""A skorch training loop on handwritten digits; the result is a scikit-learn estimator."""

import argparse

import optuna
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from torch import nn

import optuna_miha as miha

digits = load_digits()
x, y = (digits.data / 16).astype("float32"), digits.target
x, x_test, y, y_test = train_test_split(x, y, test_size=360, random_state=0)
x, x_valid, y, y_valid = train_test_split(x, y, test_size=360, random_state=0)


def as_net(model, **settings):
    net = NeuralNetClassifier(model, train_split=None, verbose=0, **settings)
    return net.initialize()


def model_fn(trial):
    return miha.Recipe(
        model=nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)),
        loss_fn=nn.CrossEntropyLoss(),
        train_data=(torch.tensor(x), torch.tensor(y)),
        valid_data=(torch.tensor(x_valid), torch.tensor(y_valid)),
    )


def trainer(recipe, n_epochs):
    net = as_net(
        recipe.model,
        criterion=recipe.loss_fn,
        batch_size=recipe.batch_size,
        iterator_train__shuffle=True,
    )
    net.optimizer_ = recipe.optimizer  # An optimizer created by skorch would have no state.
    for _ in range(n_epochs):
        net.fit_loop(x, y, epochs=1)
        value = recipe.valid_loss_fn(net.forward(x_valid), torch.tensor(y_valid))
        yield miha.EpochResult(value=value.item(), train_loss=net.history[-1, "train_loss"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=200)
    storage, sampler = "sqlite:///own_loop_skorch.db", miha.MihaSampler(seed=0)
    study = optuna.create_study(
        storage=storage, study_name="digits", load_if_exists=True, sampler=sampler
    )
    n_epochs = parser.parse_args().n_epochs
    result = miha.optimize(study, model_fn, n_epochs=n_epochs, trainer=trainer, device="cpu")
    estimator = as_net(result.model, classes=range(10))
    print(f"test accuracy: {estimator.score(x_test, y_test):.4f}")
