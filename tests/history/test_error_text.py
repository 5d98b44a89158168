"""Messages repeat no passwords."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.problems import explicit, new_study, run
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError

import optuna_miha as miha
from optuna_miha._cli.main import main
from optuna_miha._history import attributes
from optuna_miha._history.error_text import describe_error, quoted, without_credentials

URLS = [
    "postgresql://user:SECRET@db/optuna",
    "postgresql+psycopg://user:SECRET@db:5432/optuna?sslmode=require",
    "postgresql:/user:SECRET@db/optuna",
    "postgresql:user:SECRET@db/optuna",
    "postgresql//user:SECRET@db/optuna",
    "sqlite://user:SECRET@db/x",
    "user:SECRET@db/optuna",
    "redis://:SECRET@db:6379",
    "mysql://user:SEC@SECRET/SECRET@db/x",
    "postgresql://db/optuna?user=me&password=SECRET",
]


@pytest.mark.parametrize("url", URLS)
def test_a_text_repeats_the_rest_of_a_url(url: str) -> None:
    for text in (f"cannot open {url!r}: no such host", f"got {url}, which does not exist"):
        hidden = without_credentials(text)
        assert "SECRET" not in hidden
        assert "db" in hidden
        assert hidden.split(" ")[0] == text.split(" ")[0]
        assert hidden.split(" ")[-2:] == text.split(" ")[-2:]
    assert "SECRET" not in quoted(url)


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'user@example.com'",
        "cannot unpack sqlite:////tmp/run.db: locked @ 12:30",
        "RuntimeError: use @torch.no_grad() here; see https://pytorch.org/docs",
        "C:\\runs\\a@b.db",
    ],
)
def test_any_other_text_is_repeated_as_it_is(text: str) -> None:
    assert without_credentials(text) == text


def test_a_password_with_spaces_is_hidden_in_a_reference() -> None:
    assert quoted("postgresql:/user:MY SECRET@db/x") == "'postgresql:/***@db/x'"
    assert quoted("runs/my run.db") == "'runs/my run.db'"


def test_an_error_of_sqlalchemy_is_described_without_the_password() -> None:
    with pytest.raises(ArgumentError) as caught:
        create_engine("postgresql:/user:SECRET@db/optuna")
    assert describe_error(caught.value).startswith("ArgumentError: ")
    assert "SECRET" not in describe_error(caught.value)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("option", ["--storage", "--storge"])
def test_the_command_line_repeats_no_password(
    option: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(["report", "study", option, url])
    except SystemExit as error:
        code = error.code
    assert code in (1, 2)
    assert "SECRET" not in capsys.readouterr().err


@pytest.mark.parametrize("url", [url for url in URLS if "postgresql:" in url])
def test_the_url_of_a_server_is_not_taken_for_a_file(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="path of a file") as caught:
        miha.create_storage(url)
    assert "SECRET" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_error_of_a_trial_is_stored_without_the_password(
    log: pytest.LogCaptureFixture,
) -> None:
    study, n_calls = new_study(), 0

    def model_fn(trial: Any) -> miha.Recipe:
        nonlocal n_calls
        n_calls += len(study.trials) > 0  # Not the calls that check the recipe.
        if n_calls in (1, 5):  # One when a branch begins, and one in training.
            raise OSError("no connection to http://user:SECRET@data/x")
        return explicit(trial)

    run(study, model_fn, catch=(OSError,))
    errors = [t.user_attrs[attributes.ERROR] for t in study.trials if t.state.name == "FAIL"]
    assert errors == ["OSError: no connection to http://***@data/x"] * 2
    assert "SECRET" not in log.text
