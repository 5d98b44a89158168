"""The results of ``overhead.py`` in Markdown."""

from __future__ import annotations

import statistics

from _rows import Row, chosen, spread

NETWORKS = {"fnn": "FNN 784-400-10", "digits": "digits 64-128-64-10"}
TITLES = {
    "handwritten": "hand-written loop, tuned",
    "plain": "the same at one rate, without an average",
    "dataloader": "`DataLoader` loop",
    "miha-memory": "optuna_miha, in memory",
    "miha-sqlite": "optuna_miha, `sqlite:///`",
    "miha-sqlite-wal": "optuna_miha, `create_storage`",
    "miha-journal": "optuna_miha, journal file",
}


def report(rows: list[Row]) -> list[str]:
    """A table of times relative to the tuned loop, and a list of the other measurements."""
    head = "".join(f" {title} |" for title in NETWORKS.values())
    lines = [
        f"| time per epoch, relative to the tuned loop |{head}",
        "|---|" + "---|" * len(NETWORKS),
    ]
    for variant, title in TITLES.items():
        cells = []
        for network in NETWORKS:
            own = chosen(rows, variant=variant, network=network)
            cells.append(spread(own, lambda row: row["wall_s"] / row["loop_wall_s"]).text(2))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return [*lines, "", *_list_of(rows)]


def _list_of(rows: list[Row]) -> list[str]:
    lines = []
    for storage, title in {"sqlite": "`sqlite:///`", "sqlite-wal": "`create_storage`"}.items():
        own = chosen(rows, variant=f"miha-{storage}", network="digits")
        floor = chosen(rows, variant=f"optuna-floor-{storage}", network="digits")
        more, least = [], []
        for key in ("wall_s", "cpu_s"):
            seconds = statistics.median(
                (row[key] - row[f"loop_{key}"]) / len(row["reports"]) for row in own.values()
            )
            more.append(f"{1000 * seconds:.1f}")
            seconds = statistics.median(row[key] / row["n_trials"] for row in floor.values())
            least.append(f"{1000 * seconds:.1f}")
        lines.append(
            f"- Overhead per trial on {title}, digits: {more[0]} ms ({more[1]} ms CPU) on top of "
            "the tuned loop's time for the same epochs. A trial of plain Optuna with the same "
            f"number of reports and no training: {least[0]} ms ({least[1]} ms CPU)."
        )
    own, loop = (
        spread(chosen(rows, variant=f"startup-{kind}"), lambda row: row["first_step_s"])
        for kind in ("sqlite", "handwritten")
    )
    lines.append(
        f"- Time from `python script.py` to the first training step: {own.text(1)} s on SQLite, "
        f"{loop.text(1)} s for a script without optuna_miha."
    )
    parts = []
    names = {0: "tuned loop", 1: "`n_jobs=1`", 2: "`n_jobs=2`"}
    for n_jobs, name in names.items():
        known = [r for r in rows if r["variant"] == f"memory-{n_jobs}" and r["peak_pss_mib"]]
        if known:
            pss, rss = (max(row[f"peak_{key}_mib"] for row in known) for key in ("pss", "rss"))
            parts.append(f"{name} {pss:.0f} MiB (sum of resident sets: {rss:.0f} MiB)")
    if parts:
        lines.append(f"- Peak memory of all processes, FNN: {', '.join(parts)}.")
    return lines
