"""The lease of a study, which one coordinator holds at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

import optuna

from optuna_miha._history import attributes
from optuna_miha._history.error_text import describe_error
from optuna_miha._study.claims import (
    FIRST_KEY,
    Claim,
    ClaimKey,
    fence_of,
    name_of,
    read_claims,
    read_settings,
)
from optuna_miha._study.holder import Holder, active_nonces, parse_holder
from optuna_miha._study.optuna_internals import is_in_memory, study_home, study_key
from optuna_miha._study.schema import FORMAT, read_trials
from optuna_miha.exceptions import StudyLockedError

_logger = optuna.logging.get_logger("optuna.miha")

HEARTBEAT_INTERVAL = 20.0
"""Seconds between two renewals of a lease."""

EXPIRY = 60.0
"""Seconds without a renewal, as measured by the observer, after which a lease expires."""

_POLL_INTERVAL = 0.5
"""Seconds between two reads of another coordinator's lease."""

_READBACK_DELAY = 0.1
"""Seconds between writing a claim and reading the claims back. If two coordinators write at the
same time, both read both."""

_NONCE_LENGTH = 8
"""Hexadecimal digits of a nonce in the name of a claim."""

_studies: set[object] = set()
"""Keys of the studies whose lease this process holds or requests."""

_lock = threading.Lock()
"""Guards ``_studies`` and ``active_nonces``."""

_UNKNOWN = Holder(nonce="", host="?", table="", pid=0, started="", since="?")
"""The holder of a claim that cannot be read."""


class Lease:
    """The right to run a study. It is renewed regularly while it is held.

    Args:
        study: The study.
        holder: The coordinator that holds the lease.
    """

    def __init__(self, study: optuna.Study, holder: Holder) -> None:
        self._study = study
        self._holder = holder
        self._key: ClaimKey = FIRST_KEY
        self._content: dict[str, Any] = {}
        self._successor: Holder | None = None
        self._lock = threading.Lock()

    @property
    def claim(self) -> str:
        """The name of the claim, which every trial of this coordinator stores."""
        return name_of(self._key)

    def take(self) -> None:
        """Claim the study, and take over from all earlier coordinators.

        The claim takes effect with its fence. Of coordinators that claim at the same time, the
        one with the highest claim goes on.

        Raises:
            StudyLockedError: If another coordinator has claimed the study meanwhile.
        """
        read_trials(self._study)  # Invalid rows are named before anything is written.
        claims = read_claims(self._study.user_attrs)
        known = {claim.key for claim in claims if claim.is_fenced}
        number = max((claim.key[0] for claim in claims), default=0) + 1
        self._key = (number, self._holder.nonce[:_NONCE_LENGTH])
        self._content = {"home": study_home(self._study), "holder": asdict(self._holder)}
        self.write()
        if not is_in_memory(self._study):
            time.sleep(_READBACK_DELAY)
        for claim in read_claims(self._study.user_attrs):
            is_above = claim.key > self._key and not claim.is_released
            if is_above or (claim.is_fenced and claim.key not in known):
                self._write_released()
                raise _locked_error(self._study, _holder_of(claim), "It claimed the study first.")
        attrs, trials = self._study.user_attrs, self._study.get_trials(deepcopy=False)
        self.update({"fence": fence_of(trials), **read_settings(attrs)})
        if attributes.PLAN in attrs and attrs.get(attributes.FORMAT) != FORMAT:
            # Earlier versions do not know claims.
            self._study.set_user_attr(attributes.FORMAT, FORMAT)

    def update(self, content: Mapping[str, Any]) -> None:
        """Store content in the claim, such as settings; see :mod:`~optuna_miha._study.claims`."""
        with self._lock:
            self._content.update(content)
        self.write()

    def check(self) -> None:
        """Raise if another coordinator is known to have taken over.

        Raises:
            StudyLockedError: If one has.
        """
        if self._successor is not None:
            raise _locked_error(self._study, self._successor, "It took over from this process.")

    def verify(self) -> None:
        """Read the claims from the study, and raise if another coordinator has taken over.

        Called before every write to the study, and before files are removed.

        Raises:
            StudyLockedError: If one has.
        """
        if not self.is_mine():
            self.check()

    def renew(self) -> None:
        """Verify the lease, then write it.

        Raises:
            StudyLockedError: If another coordinator has taken over.
        """
        self.verify()
        self.write()

    def write(self) -> None:
        """Write the claim with a new beat count, by which observers see that it was renewed.

        The attribute ``miha:lease`` shows the holder to people and to earlier versions.
        """
        with self._lock:
            self._content["beats"] = self._content.get("beats", 0) + 1
            self._study.set_user_attr(attributes.CLAIM_PREFIX + self.claim, dict(self._content))
            if "fence" in self._content and not is_in_memory(self._study):
                lease = {**asdict(self._holder), "beats": self._content["beats"]}
                self._study.set_user_attr(attributes.LEASE, lease)

    def is_mine(self) -> bool:
        """Whether no other coordinator has taken over, according to the study."""
        if self._successor is not None:
            return False
        if is_in_memory(self._study):  # Other processes cannot access it.
            return True
        claims = read_claims(self._study.user_attrs)
        later = [claim for claim in claims if claim.is_fenced and claim.key > self._key]
        if later:
            self._successor = _holder_of(later[-1])
        return not later

    def release(self) -> None:
        """Mark the claim as released unless another coordinator has taken over.

        If one has, ``miha:lease`` may show this coordinator because of a late renewal. It is then
        removed, and the next renewal of the other one shows the other one.
        """
        with suppress(Exception):  # Other processes will find that its holder is dead.
            is_mine = self.is_mine()
            if is_mine:
                self._write_released()
            shown = self._study.user_attrs.get(attributes.LEASE)
            if shown is not None and (is_mine or shown.get("nonce") == self._holder.nonce):
                self._study.set_user_attr(attributes.LEASE, None)

    def _write_released(self) -> None:
        holder = replace(self._holder, table="", started="")  # Shorter: claims are kept.
        self._content |= {"released": True, "holder": asdict(holder)}
        self._study.set_user_attr(attributes.CLAIM_PREFIX + self.claim, dict(self._content))


@contextmanager
def hold_lease(study: optuna.Study) -> Iterator[Lease]:
    """Hold the lease of a study.

    If the coordinator that holds the lease is dead, this process takes over: at once if it ran on
    this machine, otherwise after its lease has not been renewed for a minute. So it does if the
    coordinator is suspended on this machine. The observer measures this time, so that clocks of
    other machines do not matter. A coordinator that was only suspended ends when it wakes up.

    Args:
        study: The study.

    Raises:
        StudyLockedError: If another coordinator runs the study.
    """
    key = study_key(study)
    with _lock:
        if key in _studies:
            myself = Holder.this_process()
            raise _locked_error(study, myself, "It is this process itself, in another call.")
        _studies.add(key)
    holder = None
    try:
        holder = Holder.this_process()
        lease = Lease(study, holder)
        active_nonces.add(holder.nonce)
        _wait_until_free(study)
        lease.take()
        try:
            with _renewal(study, lease):
                yield lease
        finally:
            lease.release()
    finally:
        with _lock:
            _studies.discard(key)
            if holder is not None:
                active_nonces.discard(holder.nonce)


@contextmanager
def _renewal(study: optuna.Study, lease: Lease) -> Iterator[None]:
    """Renew the lease regularly, unless no other process can access the study."""
    if is_in_memory(study):
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(
        target=_renew_until, args=(stop, lease), name="optuna-miha-lease", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _renew_until(stop: threading.Event, lease: Lease) -> None:
    """Renew the lease regularly until ``stop`` is set or another coordinator takes over."""
    while not stop.wait(HEARTBEAT_INTERVAL):
        try:
            if not lease.is_mine():
                return
            lease.write()
        except Exception as error:  # The next renewal may succeed.
            _logger.debug(f"The lease was not renewed: {describe_error(error)}.")


def _wait_until_free(study: optuna.Study) -> None:
    """Return when the study is free, or whoever holds it is dead or suspended.

    Raises:
        StudyLockedError: If a holder is alive.
    """
    seen = _signs_of_life(study)
    alive = [holder for holder, _ in seen.values() if not holder.is_known_dead()]
    for holder in alive:
        if holder.is_known_awake():
            raise _locked_error(study, holder, "It is alive.")
    if alive:
        _logger.warning(
            f"The study {study.study_name!r} has been run by process {alive[0].pid} on "
            f"{alive[0].host!r} since {alive[0].since}. Waiting for up to {EXPIRY:g} s to see "
            "whether it is alive."
        )
        _watch(study, seen)
    for holder, _ in seen.values():
        _logger.warning(
            f"Process {holder.pid} on {holder.host!r}, which had run the study "
            f"{study.study_name!r} since {holder.since}, is dead or suspended. This process takes "
            "over."
        )


def _watch(study: optuna.Study, seen: dict[str, tuple[Holder, Any]]) -> None:
    """Return when all holders have ended or have not renewed their leases for a while.

    Raises:
        StudyLockedError: If one has.
    """
    start = time.monotonic()
    while time.monotonic() - start < EXPIRY:
        time.sleep(_POLL_INTERVAL)
        current = _signs_of_life(study)
        if not current:
            return
        for name, sign in current.items():
            if seen.get(name) != sign:
                raise _locked_error(study, sign[0], "It is alive.")


def _signs_of_life(study: optuna.Study) -> dict[str, tuple[Holder, Any]]:
    """Who may run the study, by the name of the claim: holder and beat count.

    A claim that cannot be read counts as free, and one of the original of a copied study too.
    """
    attrs, home = study.user_attrs, study_home(study)
    claims = read_claims(attrs)
    last = max((claim.key for claim in claims if claim.is_fenced), default=FIRST_KEY)
    found = {
        claim.name: (parse_holder(claim.content.get("holder")), claim.content.get("beats"))
        for claim in claims
        if claim.key >= last and not claim.is_released and claim.content.get("home") == home
    }
    lease = attrs.get(attributes.LEASE)
    if isinstance(lease, dict):  # Of an earlier version, unless there is a claim for it.
        holder = parse_holder({k: v for k, v in lease.items() if k != "beats"})
        nonces = {claim.key[1] for claim in claims}
        if holder is not None and holder.nonce[:_NONCE_LENGTH] not in nonces:
            found[attributes.LEASE] = (holder, lease.get("beats"))
    return {name: (holder, beats) for name, (holder, beats) in found.items() if holder is not None}


def _holder_of(claim: Claim) -> Holder:
    holder = parse_holder(claim.content.get("holder"))
    return _UNKNOWN if holder is None else holder


def _locked_error(study: optuna.Study, holder: Holder, detail: str) -> StudyLockedError:
    return StudyLockedError(
        f"The study {study.study_name!r} has been run by process {holder.pid} on {holder.host!r} "
        f"since {holder.since}. {detail} Wait for it or stop it (Ctrl-C there, or "
        f"`kill {holder.pid}`), then run the same script again. The study of a process that died "
        f"is taken over automatically: at once on the same machine, after {EXPIRY:g} s on "
        "another. To use several processors, pass `n_jobs` or an `executor` to a single call; in "
        "a script of `torchrun`, call `optimize_on_ranks`."
    )
