"""A vision transformer of Hugging Face, built from a config, on handwritten digits.

Its batches are dictionaries, so the recipe defines how to compute the loss. The training loop is
the built-in one. Activations mutate because `hidden_act="relu"` is a torch module, unlike "gelu".
"""

import argparse

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import optuna_miha as miha

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, valid, test = order.split([1077, 360, 360])
sizes = {"hidden_size": 32, "intermediate_size": 64}
sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 1, "num_labels": 10}
config = ViTConfig(image_size=8, patch_size=2, hidden_act="relu", **sizes)


class Digits(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"pixel_values": x[self.rows[index]], "labels": y[self.rows[index]]}


def model_fn(trial):
    return miha.Recipe(
        model=ViTForImageClassification(config),
        loss_fn=nn.CrossEntropyLoss(),
        train_step=lambda model, batch, loss_fn: loss_fn(
            model(batch["pixel_values"]).logits, batch["labels"]
        ),
        train_data=Digits(train),
        valid_data=Digits(valid),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-epochs", type=int, default=200)
    storage, sampler = "sqlite:///own_loop_hugging_face.db", miha.MihaSampler(seed=0)
    study = optuna.create_study(
        storage=storage, study_name="digits", load_if_exists=True, sampler=sampler
    )
    result = miha.optimize(study, model_fn, n_epochs=parser.parse_args().n_epochs, device="cpu")
    predicted = result.model(x[test]).logits.argmax(dim=1)
    print(f"test accuracy: {(predicted == y[test]).double().mean():.4f}")
