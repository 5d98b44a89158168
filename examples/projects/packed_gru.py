"""A GRU on packed sequences of different lengths: which of four symbols is the most frequent?"""

import torch
from project import main
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader

import optuna_miha as miha


def sequences(n, seed):
    """Sequences of 5 to 20 symbols, and the most frequent symbol of each."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(n):
        length = int(torch.randint(5, 21, (), generator=generator))
        symbols = torch.randint(0, 4, (length,), generator=generator)
        samples.append((symbols, symbols.bincount(minlength=4).argmax()))
    return samples


def packed(batch):
    symbols, targets = zip(*batch, strict=True)
    rows = [nn.functional.one_hot(row, 4).float() for row in symbols]
    return pack_sequence(rows, enforce_sorted=False), torch.stack(targets)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 24, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, sequences):
        return self.head(self.gru(sequences)[1][-1])


def loader(samples, **settings):
    return DataLoader(samples, batch_size=64, collate_fn=packed, **settings)


train, valid, test = (sequences(n, seed) for seed, n in enumerate([1000, 400, 1000]))


def model_fn(trial):
    model = Network()
    return miha.Recipe(
        model=model,
        loss_fn=nn.CrossEntropyLoss(),
        train_data=loader(train, shuffle=True),
        valid_data=loader(valid),
        optimizer=miha.suggest_optimizer(trial, model.parameters(), initial="adamw"),
        batch_size=miha.suggest_batch_size(trial, initial=64),
        grad_clip=miha.suggest_float(trial, "grad_clip", 0.1, 10.0, initial=1.0, log=True),
    )


def test_accuracy(model):
    hits = [(model(inputs).argmax(1) == targets).double() for inputs, targets in loader(test)]
    return float(torch.cat(hits).mean())


if __name__ == "__main__":
    main(model_fn, test_accuracy, name="test accuracy", n_epochs=60)
