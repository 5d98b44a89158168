"""The tasks of real origin: small networks on data that packages ship.

They come in pairs of the same kind. Before any method was run on them, the first of each pair was
assigned to ``development``, by which plans may be tuned, and the second to ``confirmation``, which
is run only when a plan is fixed. Networks are what an expert would write first, with dropout where
it is usual. The small tasks of ``tasks.py`` have the same interface.
"""

from __future__ import annotations

from functools import partial

import _real_networks as networks
import _real_signals as signals
import _real_tables as tables
from tasks import Task, classifier, makes, regressor

_TASKS = [
    Task(
        name="ames",
        kind="mixed tabular regression",
        description="2,930 home sales, 34 numbers and 40 categories; MLP 226-64-32-1",
        make=makes(regressor, tables.ames, partial(networks.table_mlp, 226, 1)),
        half="development",
    ),
    Task(
        name="hotel-rates",
        kind="mixed tabular regression",
        description="15,402 bookings, 10,000 of them for training; MLP 145-64-32-1",
        make=makes(
            regressor, tables.hotel_rates, partial(networks.table_mlp, 145, 1), batch_size=256
        ),
        half="confirmation",
    ),
    Task(
        name="credit",
        kind="mixed tabular classification",
        description="4,454 loans with missing values, paid back or not; MLP 29-64-32-2",
        make=makes(classifier, tables.credit, partial(networks.table_mlp, 29, 2)),
        half="development",
    ),
    Task(
        name="loan-grades",
        kind="mixed tabular classification",
        description="10,000 loans with missing values in 5 grades; MLP 120-64-32-5",
        make=makes(classifier, tables.loan_grades, partial(networks.table_mlp, 120, 5)),
        half="confirmation",
    ),
    Task(
        name="leaves",
        kind="tabular classification",
        description="1,907 leaves of 32 species; MLP 80-64-32-32",
        make=makes(classifier, tables.leaves, partial(networks.table_mlp, 80, 32)),
        half="development",
    ),
    Task(
        name="cells",
        kind="tabular classification",
        description="2,019 cells, well segmented or not; MLP 56-64-32-2",
        make=makes(classifier, tables.cells, partial(networks.table_mlp, 56, 2)),
        half="confirmation",
    ),
    Task(
        name="concrete",
        kind="few validation samples",
        description="strength of 1,030 mixtures, 120 validation samples; MLP 8-64-32-1",
        make=makes(regressor, tables.concrete, partial(networks.table_mlp, 8, 1)),
        half="development",
    ),
    Task(
        name="orange-juice",
        kind="few validation samples",
        description="1,070 purchases of two brands, 120 validation samples; MLP 19-64-32-2",
        make=makes(classifier, tables.orange_juice, partial(networks.table_mlp, 19, 2)),
        half="confirmation",
    ),
    Task(
        name="reviews",
        kind="text",
        description="4,973 reviews of food, enthusiastic or not; averaged word vectors, MLP",
        make=makes(classifier, signals.reviews, networks.WordAverage),
        half="development",
    ),
    Task(
        name="tweets",
        kind="text",
        description="8,594 tweets from one of two phones; averaged word vectors, MLP",
        make=makes(classifier, signals.tweets, networks.WordAverage),
        half="confirmation",
    ),
    Task(
        name="digits-5k",
        kind="images",
        description="5,000 digits of MNIST at 14x14 pixels; two convolutions of 8 and 16 channels",
        make=makes(classifier, signals.digits_5k, networks.digit_cnn),
        half="development",
    ),
    Task(
        name="photographs",
        kind="images",
        description="2,080 patches of photographs, 8x8 to 16x16; three convolutions",
        make=makes(regressor, signals.photographs, networks.upscaler),
        half="confirmation",
    ),
    Task(
        name="weather",
        kind="sequences",
        description="temperature at 3 airports in 12 hours, 10,296 windows of 24 hours; 1-D CNN",
        make=makes(regressor, signals.weather, networks.WeatherCnn, batch_size=64),
        half="development",
    ),
    Task(
        name="electricity",
        kind="sequences",
        description="demand for electricity in 12 hours, from 24 hours; GRU of 16 units",
        make=makes(regressor, signals.electricity, networks.Forecaster, batch_size=64),
        half="confirmation",
    ),
]

REAL_TASKS = {task.name: task for task in _TASKS}
"""All tasks of real origin by name, in pairs of the same kind."""
