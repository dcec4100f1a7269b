"""The figures of a run: weights and curves of a search, its audit, curves of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from wenet.report.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    Picture,
    mark_whole_numbers,
    new_drawing,
    styled,
)
from wenet.report.run import Run
from wenet.searching.contest import contestant_name, not_diverged, parameters_of_all, windows_of_all
from wenet.searching.strategy import generation_of, last_ranking
from wenet.tasks import Baseline, Metric
from wenet.words import counted, figure

Record = dict[str, Any]
Table = list[list[Any]]
FATES = {"goes no further": GREY, "goes on": BLUE, "first": ORANGE}  # of a cell in a rung
APART = 0.12  # of a rung, between generations, if there is room
MOST_MARKED = 30  # rounds; with more, points on a line would run together
MOST_ROUNDS = 100  # on the page's slider; of longer searches every second, third, ... round


def weights_picture(run: Run) -> Picture:
    """The sorted weights of every round (the paper's Figure 4); only the last round is visible at first.

    The shapes of round R have ids `weights-round-R-...`, which the page uses to switch between rounds.
    """
    records, keep = run.records, run.settings["keep"]
    highest = max(network["weight"] for record in records for network in record["networks"])
    most = max(len(record["networks"]) for record in records)
    with styled():
        drawing = new_drawing(2.9)
        axes = drawing.add_subplot()
        axes.set(xlim=(0.25, most + 0.75), ylim=(0, 1.12 * highest))
        axes.set(xlabel="network, by rank", ylabel="weight in the mixture (sum 1)")
        mark_whole_numbers(axes)
        for record in shown_rounds(records):
            _weights_of_round(axes, record, keep, shown=record is records[-1])
        _legend(axes, [("s", BLUE, "kept"), ("s", GREY, "dropped"), ("-", INK, "equal share")])
    table: Table = [["round", "rank", "genotype", "weight", "equal_share", "rounds_kept_before", "kept"]]
    table += [
        [record["round"], rank, n["genotype"], n["weight"], record["uniform_weight"], n["rounds_kept"], rank <= keep]
        for record in records
        for rank, n in enumerate(record["networks"], start=1)
    ]
    largest = max(network["weight"] for network in records[-1]["networks"])
    description = (
        f"Bars of the weights of {counted(len(records[-1]['networks']), 'network')} in round {records[-1]['round']}, "
        f"by rank: the largest is {largest:.4f}, an equal share {records[-1]['uniform_weight']:.4f}; the first {keep} "
        "are kept."
    )
    return Picture("weights", "Sorted network weights", description, drawing, table)


def shown_rounds(records: Sequence[Record]) -> list[Record]:
    """Equally spaced rounds that include the last one."""
    step = -(-len(records) // MOST_ROUNDS)
    return list(records[::-1][::step][::-1])


def _weights_of_round(axes: Axes, record: Record, keep: int, shown: bool) -> None:
    weights = [network["weight"] for network in record["networks"]]
    name, kept, alpha = f"round-{record['round']}", min(keep, len(weights)), 1.0 if shown else 0.0
    for part, first, last, colour in (("kept", 0, kept, BLUE), ("dropped", kept, len(weights), GREY)):
        if last > first:
            edges = [place + 0.5 for place in range(first, last + 1)]
            axes.stairs(weights[first:last], edges, fill=True, color=colour, alpha=alpha, gid=f"{name}-{part}")
    ends = (0.5, len(weights) + 0.5)
    axes.plot(ends, [record["uniform_weight"]] * 2, color=INK, linewidth=1.3, alpha=alpha, gid=f"{name}-equal")


def trajectories_picture(run: Run) -> Picture:
    """The weights of all cells that were ever kept, round by round, relative to an equal share."""
    records = run.records
    paths: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for network in record["networks"]:
            share = network["weight"] / record["uniform_weight"]
            paths.setdefault(network["genotype"], []).append((record["round"], share))
    last = [network["genotype"] for network in records[-1]["networks"][: run.settings["keep"]]]
    kept_once = [genotype for genotype, path in paths.items() if len(path) > 1 or genotype in last]
    with styled():
        drawing = new_drawing(2.9)
        axes = drawing.add_subplot()
        for genotype in sorted(kept_once, key=lambda cell: (cell == last[0], cell in last)):
            colour, width = _standing(genotype, last)
            style = "o-" if len(records) <= MOST_MARKED else "-"
            axes.plot(*zip(*paths[genotype], strict=True), style, color=colour, linewidth=width, markersize=2 + width)
        axes.axhline(1, color=INK, linewidth=1, linestyle="--")
        axes.set(xlabel="round", ylabel="weight / equal share")
        mark_whole_numbers(axes)
        axes.margins(y=0.22)
        _legend(
            axes,
            [
                ("-", ORANGE, "first at the end"),
                ("-", BLUE, "kept at the end"),
                ("-", GREY, "dropped"),
                ("--", INK, "equal share"),
            ],
            columns=2,
        )
    table: Table = [["genotype", "round", "weight_over_equal_share", "kept_at_the_end"]]
    table += [[cell, number, share, cell in last] for cell in kept_once for number, share in paths[cell]]
    begin, end = paths[last[0]][0], paths[last[0]][-1]
    description = (
        f"A line for every cell that was kept at least once, {len(kept_once)} in all; a point where it was new at the "
        f"end. The cell that is first at the end has {end[1]:.2f} times an equal share in round {end[0]}"
        + (f", {begin[1]:.2f} times in round {begin[0]}, its first." if begin != end else ", its first.")
    )
    return Picture("trajectories", "Weights of the cells that were kept", description, drawing, table)


def _standing(genotype: str, last: Sequence[str]) -> tuple[str, float]:
    """Colour and line width of a cell, by its final place."""
    if genotype == last[0]:
        return ORANGE, 2.4
    return (BLUE, 1.5) if genotype in last else (GREY, 0.9)


def search_curves_picture(run: Run) -> Picture:
    """Training loss within each round and the validation metric at its end; each round starts from new weights."""
    records, metric = run.records, run.metric
    key = f"valid_{metric.key}"
    losses = [
        (record["round"] - 1 + (i + 0.5) / len(record["train_loss_curve"]), loss)
        for record in records
        for i, loss in enumerate(record.get("train_loss_curve", []))
    ]
    valid = [(r["round"], r[key]) for r in records if r[key] is not None]
    with styled():
        drawing = new_drawing(3.9)
        above, below = drawing.subplots(2, sharex=True)
        for record in records:
            part = [point for point in losses if record["round"] - 1 <= point[0] < record["round"]]
            if part:
                above.plot(*zip(*part, strict=True), color=BLUE, linewidth=1.5)
        above.set(ylabel="training loss\n(nats per token)")
        if valid:
            below.plot(*zip(*valid, strict=True), "o-", color=ORANGE, linewidth=1.5, markersize=4)
        if run.baseline is not None:
            _mark_baseline(below, run.baseline, [value for _, value in valid], metric)
        below.set(xlabel="rounds finished", ylabel=f"validation\n{metric.name}", xlim=(0, None))
        mark_whole_numbers(below)
        drawing.align_ylabels()
    table: Table = [["rounds", "train_loss_nats_per_token", key]]
    table += [[rounds, loss, ""] for rounds, loss in losses] + [[number, "", value] for number, value in valid]
    reached = _from_to("Validation", metric, valid, "round")
    description = f"Two curves over {counted(len(records), 'round')}. {reached}{_without_a_model(run)}"
    return Picture("learning", "Learning curves of the mixture", description, drawing, table)


def rungs_picture(run: Run) -> Picture:
    """The metric of each cell in each rung, and whether it went on or won."""
    rungs, metric = _ranked_in_rungs(run), run.metric
    key = metric.key
    cells = [(rung, rank, cell) for rung, ranked in rungs.items() for rank, cell in enumerate(ranked, start=1)]
    furthest = {cell["genotype"]: rung for rung, _, cell in cells}
    first = last_ranking(run.records)["networks"][0]
    generations = max(generation_of(cell) for _, _, cell in cells)
    apart = min(APART, 0.6 / generations)

    def fate(rung: int, cell: Record) -> str:
        went_on = furthest[cell["genotype"]] > rung
        return "first" if cell is first else "goes on" if went_on else "goes no further"

    with styled():
        drawing = new_drawing(3.1)
        axes = drawing.add_subplot()
        for wanted, colour in FATES.items():
            group = [
                (rung + apart * (generation_of(cell) - (generations + 1) / 2), cell[key])
                for rung, _, cell in cells
                if cell[key] is not None and fate(rung, cell) == wanted
            ]
            if group:
                axes.plot(*zip(*group, strict=True), "o", color=colour, markersize=4, alpha=0.8)
        if any(cell[key] is not None for _, _, cell in cells):
            axes.set_yscale("log")
            _plain_ticks(axes)
        axes.set(xlabel="rung", ylabel=f"validation {metric.name}, standalone")
        axes.margins(x=0.15)
        mark_whole_numbers(axes)
        _legend(axes, [("o", FATES[name], name) for name in ("goes on", "first", "goes no further")], columns=3)
    words = _rungs_in_words(rungs, generations, metric)
    return Picture("rungs", "Rung by rung", words, drawing, _rungs_table(cells, key))


def _rungs_table(cells: Sequence[tuple[int, int, Record]], key: str) -> Table:
    """Of rungs, ranks and cells."""
    losses = [name for name in ("held_out_loss", "extrapolated_loss") if any(name in cell for _, _, cell in cells)]
    rows = [
        [generation_of(cell), rung, rank, cell["genotype"], cell[key], *map(cell.get, losses)]
        for rung, rank, cell in cells
    ]
    return [["generation", "rung", "rank", "genotype", key, *losses], *rows]


def _rungs_in_words(rungs: Mapping[int, Sequence[Record]], generations: int, metric: Metric) -> str:
    fewer = f" in each of {len(rungs)} rungs; from rung to rung fewer are trained for longer" * (len(rungs) > 1)
    beside = "Within a rung generations stand side by side, the first on the left. " * (generations > 1)
    ahead = [rung for rung, ranked in rungs.items() if "extrapolated_loss" in ranked[0]]
    by = "".join(f"Rung {rung} ranks by an extrapolated loss, lower where losses fall fast. " for rung in ahead[:1])
    reached = [(rung, ranked[0][metric.key]) for rung, ranked in rungs.items() if ranked[0][metric.key] is not None]
    return f"A point for each cell{fewer}. {beside}{by}" + _from_to("The leading cell's", metric, reached, "rung")


def _ranked_in_rungs(run: Run) -> dict[int, list[Record]]:
    """By rung all cells that finished it, in whatever generation, the best first."""
    rungs: dict[int, dict[str, tuple[float, Record]]] = {}
    for record in run.records:
        scored = rungs.setdefault(record["round"], {})
        for place, cell in enumerate(record["networks"]):
            scored[cell["genotype"]] = run.strategy.score(record, place), cell
    return {
        rung: [cell for _, cell in sorted(scored.values(), key=lambda each: -each[0])]
        for rung, scored in sorted(rungs.items())
    }


def audit_picture(audit: Record, metric: Metric) -> Picture:
    """The search's score against the metric after standalone training; diverged cells are at the edge of the worst."""
    cells, tau, key = audit["networks"], audit["kendall"], metric.key
    finite = [cell[key] for cell in cells if cell[key] is not None]
    beyond = 0.15 * (max(finite) - min(finite) or 1) if finite else 0.0
    edge = 1.0
    if finite:
        edge = max(finite) + beyond if metric.lower_is_better else min(finite) - beyond
    with styled():
        drawing = new_drawing(3.4)
        axes = drawing.add_subplot()
        for kept, marker, colour in ((True, "o", ORANGE), (False, "s", BLUE)):
            group = [cell for cell in cells if cell["kept"] is kept]
            heights = [edge if cell[key] is None else cell[key] for cell in group]
            axes.plot([c["score"] for c in group], heights, marker, color=colour, markeredgecolor=PAPER, markersize=7)
        for cell in cells:
            if cell[key] is None:
                axes.annotate("diverged", (cell["score"], edge), (6, 0), textcoords="offset points", va="center")
        axes.set(xlabel="score by the search", ylabel=f"validation {metric.name}, standalone")
        axes.margins(y=0.22)
        if tau["low"] is not None:
            found = f"Kendall's tau {tau['value']:.2f} ({tau['low']:.2f} to {tau['high']:.2f})"
            axes.annotate(found, (1, 1), (-4, -4), "axes fraction", textcoords="offset points", ha="right", va="top")
        _legend(axes, [("o", ORANGE, "kept by the search"), ("s", BLUE, "rejected")], columns=2)
    table: Table = [["genotype", "score", key, "kept", "round"]]
    table += [[c["genotype"], c["score"], c[key], c["kept"], c["round"]] for c in cells]
    description = (
        f"{counted(len(cells), 'cell')} as points: across the score by which the search ranked them, upwards their "
        f"{metric.name} after standalone training for {counted(audit['epochs'], 'epoch')}. Where the search ranks "
        f"well, points {'fall' if metric.lower_is_better else 'rise'} to the right."
    )
    return Picture("audit", "Score of the search and standalone training", description, drawing, table)


def contest_picture(contest: Record, metric: Metric) -> Picture:
    """Every training of the contest, and the mean of each contestant, the best at the top."""
    rows = contest["contestants"]
    with styled():
        drawing = new_drawing(0.9 + 0.36 * len(rows))
        axes = drawing.add_subplot()
        for height, row in enumerate(reversed(rows)):
            colour = ORANGE if row["name"] == "winner" else BLUE
            test = not_diverged(row)
            axes.plot(test, [height] * len(test), "o", color=colour, markersize=5, alpha=0.6)
            if row["mean"] is not None:
                axes.plot([row["mean"]], [height], "|", color=colour, markersize=16, markeredgewidth=2)
        axes.set_yticks(range(len(rows)), [contestant_name(row) for row in reversed(rows)])
        axes.set(xlabel=f"test {metric.name}")
        axes.margins(y=0.12)
    table: Table = [["contestant", "genotype", f"test {metric.name}"]]
    table += [[contestant_name(row), row["genotype"], value] for row in rows for value in not_diverged(row)]
    chosen = "rate and weight decay" if len(contest.get("weight_decays", [])) > 1 else "rate"
    better = "left" if metric.lower_is_better else "right"
    description = (
        f"A point for each training of a contestant, a line at their mean; further {better} is better. All models have "
        f"{parameters_of_all(contest)} parameters and were trained on {windows_of_all(contest)}, each "
        f"at its own best {chosen}."
    )
    return Picture("contest", "The contest", description, drawing, table)


def training_curves_picture(run: Run) -> Picture:
    """The metric on training and validation text by epoch; marks for averaging, the best epoch and divergences."""
    records, best, metric = run.records, run.best, run.metric
    key = f"valid_{metric.key}"
    sound = [record for record in records if key in record]
    task: Any = run.task  # of text, which alone is trained so
    in_metric = task.in_metric
    train = [(record["epoch"], in_metric(min(record["train_loss"], 699.0))) for record in sound]
    valid = [(record["epoch"], record[key]) for record in sound]
    marks = [("-", BLUE, "training, with dropout"), ("-", ORANGE, "validation")]
    with styled():
        drawing = new_drawing(3.3)
        axes = drawing.add_subplot()
        if sound:
            axes.plot(*zip(*train, strict=True), "o-", color=BLUE, linewidth=1.5, markersize=3)
            axes.plot(*zip(*valid, strict=True), "o-", color=ORANGE, linewidth=1.8, markersize=4)
            axes.set_yscale("log")
            if run.baseline is not None:
                axes.axhline(run.baseline.value, color=MUTED, linestyle="-.", linewidth=1.2)
                marks.append(("-.", MUTED, run.baseline.name))
            _plain_ticks(axes)
            top = min(valid, key=lambda point: metric.order(point[1]))
            axes.plot(*top, "*", color=ORANGE, markeredgecolor=PAPER, markersize=13)
            marks.append(("*", ORANGE, "best epoch"))
        if best.get("averaging_from") is not None:
            axes.axvline(best["averaging_from"] - 0.5, color=GREEN, linestyle="--", linewidth=1.4)
            marks.append(("--", GREEN, "SGD → ASGD"))
        for record in records:
            if "diverged" in record:
                axes.axvline(record["epoch"], color=INK, linestyle=":", linewidth=1.2)
        if any("diverged" in record for record in records):
            marks.append((":", INK, "diverged, rolled back"))
        axes.set(xlabel="epoch", ylabel=f"{metric.name} (log scale)")
        mark_whole_numbers(axes)
        _legend(axes, marks, columns=2)
    table: Table = [["epoch", f"train_{metric.key}", key, "averaged", "seconds_so_far"]]
    for (epoch, value), record in zip(train, sound, strict=True):
        table.append([epoch, value, record[key], record["averaged"], record["seconds_so_far"]])
    reached = _from_to("Validation", metric, valid, "epoch")
    description = f"Curves over {counted(len(records), 'epoch')}. {reached}{_without_a_model(run)}"
    return Picture("learning", "Learning curves", description, drawing, table)


# By the names that strategies use.
SEARCH_FIGURES: dict[str, Callable[[Run], Picture]] = {
    "weights": weights_picture,
    "trajectories": trajectories_picture,
    "learning": search_curves_picture,
    "rungs": rungs_picture,
}


def _mark_baseline(axes: Axes, baseline: Baseline, values: Sequence[float], metric: Metric) -> None:
    """Draw a line at the baseline; the axis becomes logarithmic if it is far from the values."""
    axes.axhline(baseline.value, color=MUTED, linestyle="-.", linewidth=1.2)
    ends = [*values, baseline.value]
    if min(ends) > 0 and max(ends) > 3 * min(ends):
        axes.set_yscale("log")
        _plain_ticks(axes)
    axes.margins(y=0.2)
    axes.annotate(
        f"{baseline.name} {figure(baseline.value, metric.places - 1)}",
        (1, baseline.value),
        (-2, 2),
        ("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
    )


def _without_a_model(run: Run) -> str:
    """A sentence on the baseline, for a description."""
    if run.baseline is None:
        return ""
    name, value = run.baseline
    return f" {name[0].upper()}{name[1:]} alone give {figure(value, run.metric.places)}."


def _from_to(which: str, metric: Metric, points: Sequence[tuple[int, float]], unit: str) -> str:
    """A sentence on the first, last and best value of the metric."""
    what, places = f"{which} {metric.name}", metric.places
    if not points:
        return f"{what} was not measured."
    (first, begin), (last, end) = points[0], points[-1]
    if len(points) == 1:
        return f"{what} is {figure(end, places)} after {unit} {last}."
    best = min(points, key=lambda point: metric.order(point[1]))
    extreme = "lowest" if metric.lower_is_better else "highest"
    return (
        f"{what} is {figure(begin, places)} after {unit} {first} and {figure(end, places)} after {unit} {last}; it is "
        f"{extreme}, {figure(best[1], places)}, after {unit} {best[0]}."
    )


def _plain_ticks(axes: Axes) -> None:
    """Label a logarithmic axis with plain numbers; a short axis gets equally spaced ones."""
    low, high = axes.get_ylim()
    wide = high > 4 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)) if wide else MaxNLocator(5))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, marks: Sequence[tuple[Any, str, str]], columns: int = 3) -> None:
    """A legend of marks (style, colour, text) above the axes, where it covers nothing."""
    handles = []
    for style, colour, text in marks:
        is_line = style in ("-", "--", ":", "-.")
        handles.append(
            Line2D(
                [], [], linestyle=style if is_line else "", marker="" if is_line else style, color=colour, label=text
            )
        )
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, handlelength=1.4, borderaxespad=0.2
    )
