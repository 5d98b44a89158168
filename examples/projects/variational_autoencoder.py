"""A variational autoencoder whose weight of the divergence mutates."""

import torch
from project import digits, main
from torch import nn
from torch.utils.data import TensorDataset

import optuna_miha as miha

train, valid, test = (TensorDataset(images.flatten(1)) for images, _ in digits())


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, images):
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        code = mean + noise * (0.5 * log_variance).exp()
        return {"images": self.decoder(code), "mean": mean, "log_variance": log_variance}


def reconstruction(outputs, targets):
    return nn.functional.mse_loss(outputs["images"], targets)


def model_fn(trial):
    model = Autoencoder()
    beta = miha.suggest_float(trial, "beta", 1e-4, 1e-1, initial=1e-2, log=True)

    def step(model, batch, loss_fn):
        (images,) = batch
        outputs = model(images)
        mean, log_variance = outputs["mean"], outputs["log_variance"]
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean() / 64
        return miha.StepOutput(loss_fn(outputs, images) + beta * divergence, outputs, images)

    return miha.Recipe(
        model=model,
        loss_fn=reconstruction,
        train_data=train,
        valid_data=valid,
        optimizer=miha.suggest_optimizer(trial, model.parameters(), initial="adam"),
        batch_size=miha.suggest_batch_size(trial, initial=64),
        train_step=step,
        metrics={"reconstruction": reconstruction},
        monitor="loss",
    )


def test_error(model):
    images = test.tensors[0]
    return float(reconstruction(model(images), images))


if __name__ == "__main__":
    main(model_fn, test_error, name="test MSE", n_epochs=60)
