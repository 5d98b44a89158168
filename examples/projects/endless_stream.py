"""An endless stream, with decisions every 30 steps: a regression on samples that are made anew."""

import torch
from project import main
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import optuna_miha as miha


def samples(n, generator):
    """Points in four dimensions, and a function of them with noise."""
    x = torch.rand(n, 4, generator=generator) * 2 - 1
    y = (3 * x[:, :1]).sin() * x[:, 1:2] + x[:, 2:3] ** 2
    return x, y + 0.05 * torch.randn(n, 1, generator=generator)


class Stream(IterableDataset):
    """Samples without end, whose state outlives segments: they are never read again."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self):
        while True:
            x, y = samples(1, self.generator)
            yield x[0], y[0]

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])


valid, test = (samples(500, torch.Generator().manual_seed(seed)) for seed in (1, 2))


def model_fn(trial):
    model = nn.Sequential(
        nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1)
    )
    return miha.Recipe(
        model=model,
        loss_fn=nn.MSELoss(),
        train_data=DataLoader(Stream(), batch_size=32),
        valid_data=valid,
        optimizer=miha.suggest_optimizer(trial, model.parameters(), initial="adamw"),
        accumulate=trial.suggest_categorical("accumulate", [1, 2]),
        steps_per_epoch=30,
        warmup_steps=20,
    )


def test_error(model):
    return float(nn.functional.mse_loss(model(test[0]), test[1]))


if __name__ == "__main__":
    main(model_fn, test_error, name="test MSE", n_epochs=60)
