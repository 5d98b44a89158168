"""A custom training loop for two networks: a small GAN that generates points on a circle."""

import sys

import optuna
import torch
from torch import nn

import optuna_miha as miha

angles = 2 * torch.pi * torch.rand(2000, generator=torch.Generator().manual_seed(0))
train, valid = torch.stack([angles.cos(), angles.sin()], dim=1).split(1000)


class Rivals(nn.Module):
    def __init__(self, lr):
        super().__init__()
        self.make = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        self.judge = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        self.optimizer = torch.optim.RMSprop(self.judge.parameters(), lr=lr)

    def get_extra_state(self):
        return self.optimizer.state_dict()["state"]

    def set_extra_state(self, state):  # Keeps the learning rate of this branch.
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def model_fn(trial):
    lr, lr_judge = (trial.suggest_float(k, 1e-4, 0.1, log=True) for k in ("lr", "lr.judge"))
    model = Rivals(lr_judge)
    optimizer = torch.optim.Adam(model.make.parameters(), lr=lr, betas=(0.5, 0.999))
    data = {"train_data": (train, train), "valid_data": (valid, valid), "batch_size": 64}
    return miha.Recipe(model=model, loss_fn=nn.BCEWithLogitsLoss(), optimizer=optimizer, **data)


def trainer(recipe, n_epochs):
    rivals = recipe.model
    for _ in range(n_epochs):
        for real in train[torch.randperm(len(train))].split(recipe.batch_size):
            fake, ones = rivals.make(torch.randn(len(real), 4)), torch.ones(len(real), 1)
            both = rivals.judge(torch.cat([real, fake.detach()]))
            rivals.zero_grad()
            recipe.loss_fn(both, torch.cat([ones, 0 * ones])).backward()
            rivals.optimizer.step()
            recipe.loss_fn(rivals.judge(fake), ones).backward()
            recipe.optimizer.step()
        with torch.no_grad():
            fake = rivals.make(torch.randn(1000, 4, generator=torch.Generator().manual_seed(1)))
            within = torch.cdist(fake, fake) + torch.cdist(valid, valid)
            distance = (2 * torch.cdist(fake, valid) - within).mean().item()  # Energy distance.
        yield miha.EpochResult(value=distance)


if __name__ == "__main__":
    n_epochs = int(sys.argv[-1]) if len(sys.argv) > 1 else 200
    study = optuna.create_study(
        storage="sqlite:///own_loop_gan.db", study_name="gan", load_if_exists=True
    )
    result = miha.optimize(study, model_fn, n_epochs=n_epochs, trainer=trainer, device="cpu")
    print(f"validation distance: {result.value:.4f}")
