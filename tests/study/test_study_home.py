"""Studies are told apart by their home, whatever storage they are in."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from helpers import services
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from optuna_miha._study.optuna_internals import study_home


def journal(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def home(storage: str | BaseStorage, name: str = "one") -> str:
    return study_home(optuna.create_study(storage=storage, study_name=name, load_if_exists=True))


@pytest.mark.slow
def test_a_study_in_a_file_has_one_home_by_whatever_path(tmp_path: Path) -> None:
    first = home(f"sqlite:///{tmp_path}/a.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "a.db")
    (tmp_path / "sub").mkdir()
    assert home(f"sqlite:///{tmp_path}/link.db") == first
    assert home(f"sqlite:///{tmp_path}/sub/../a.db") == first
    assert home(f"sqlite:///{tmp_path}/a.db", "other") != first
    assert home(f"sqlite:///{tmp_path}/b.db") != first
    one = home(journal(tmp_path / "a.log"))
    assert home(journal(tmp_path / "a.log")) == one
    assert home(journal(tmp_path / "b.log")) not in (one, first)


def test_studies_in_memory_have_homes_of_their_own() -> None:
    storages = InMemoryStorage(), InMemoryStorage()
    assert home(storages[0]) == home(storages[0])
    assert home(storages[0]) != home(storages[1])
    assert home("sqlite://") != home("sqlite://")


@pytest.mark.slow
def test_the_password_of_a_server_does_not_matter(
    request: pytest.FixtureRequest,
) -> None:
    url: str = request.getfixturevalue("postgresql").new_database()
    homes = set()
    for address in (url, url.replace("tests@", "tests:secret@")):
        with services.rdb_storage(address) as storage:
            homes.add(home(storage))
    assert len(homes) == 1
