"""What ``overhead.py`` measured, in Markdown."""

from __future__ import annotations

import statistics

from _figures import Row, chosen, figures

NETWORKS = {"fnn": "FNN 784-400-10", "digits": "digits 64-128-64-10"}
TITLES = {
    "handwritten": "hand-written loop, tuned",
    "dataloader": "`DataLoader` loop",
    "miha-memory": "optuna_miha, in memory",
    "miha-sqlite": "optuna_miha, `sqlite:///`",
    "miha-sqlite-wal": "optuna_miha, `create_storage`",
    "miha-journal": "optuna_miha, journal file",
}


def report(rows: list[Row]) -> list[str]:
    """The rows in Markdown: a table of milliseconds per epoch, and a list of the rest."""

    def per_epoch(row: Row) -> float:
        return 1000 * row["wall_s"] / row["n_epochs"]

    head = "".join(f" {title}, ms per epoch | ratio |" for title in NETWORKS.values())
    lines = [f"| |{head}", "|---|" + "---|" * (2 * len(NETWORKS))]
    for variant, title in TITLES.items():
        cells = []
        for network in NETWORKS:
            own = chosen(rows, variant=variant, network=network)
            ratio = figures(own, lambda row: row["wall_s"] / row["loop_wall_s"]).text(2)
            cells += [f"{figures(own, per_epoch).median:.1f}", ratio]
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
            f"- Beyond the epochs in it by the tuned loop, a trial of the digits' run on {title} "
            f"costs {more[0]} ms, {more[1]} ms of them CPU time; plain Optuna takes {least[0]} "
            f"and {least[1]} ms for a trial of as many reports, without any training."
        )
    own, loop = (
        figures(chosen(rows, variant=f"startup-{kind}"), lambda row: row["first_step_s"])
        for kind in ("sqlite", "handwritten")
    )
    lines.append(
        f"- From `python script.py` to the first training step: {own.text(1)} s on SQLite, "
        f"{loop.text(1)} s for a script without optuna_miha."
    )
    parts = []
    names = {0: "the tuned loop", 1: "`n_jobs=1`", 2: "`n_jobs=2`"}
    for n_jobs, name in names.items():
        known = [r for r in rows if r["variant"] == f"memory-{n_jobs}" and r["peak_pss_mib"]]
        if known:
            pss, rss = (max(row[f"peak_{key}_mib"] for row in known) for key in ("pss", "rss"))
            parts.append(f"{name} {pss:.0f} MiB (resident sets summed: {rss:.0f} MiB)")
    if parts:
        lines.append(f"- Peak memory, all processes together, on the FNN: {', '.join(parts)}.")
    return lines
