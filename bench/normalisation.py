"""`python -m bench.normalisation`: the effect of batch normalisation on a mixture.

Four trainings of the same random cells, on characters of the Penn Treebank: as a mixture and all standalone, without
normalisation and with it. Of each mixture, after some windows: its loss, how its weights agree with standalone quality
and with the number of sigmoids in a cell, and how much of a small change of the state is left some steps later.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from wenet.cells import Genotype, random_genotypes
from wenet.nn import LanguageModel, WeightedDagRNN
from wenet.run import resolve_machine
from wenet.searching.mixture import build_mixture, build_optimizer, mixing_weights
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.tasks import task_of

SETTINGS = {
    **{"dataset": "ptb", "level": "characters", "hidden": 64, "data_batch": 32, "bptt": 50, "clip": 1.0, "lr": 5e-3},
    **{"mix_lr": 5e-3, "decoder_bias": "frequencies", "weight_decay": 0.0, "temporal_activation_reg": 0.0},
    **{f"dropout_{what}": 0.0 for what in ("embedding", "x", "h", "output")},
}
TRAINED_ON, VALIDATED_ON = 1_200_000, 48_000  # characters
CHANGE = 1e-3  # of the state, in units of its standard deviation
LATER = (5, 50)  # steps
NORMS = ("none", "batch")

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, metavar="N", help="default: %(default)s")
    parser.add_argument("--pool-seed", type=int, default=17, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--windows", type=int, nargs="+", default=[75, 150, 300, 700], help="default: %(default)s")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file for the figures")
    options = parser.parse_args()
    config = resolve_machine(resolve_config("quick", {**SETTINGS, "seed": options.seed}))
    corpus = task_of(config).load(config, options.data_dir)
    data = replace(corpus, train=corpus.train[:TRAINED_ON], valid=corpus.valid[:VALIDATED_ON])
    cells = random_genotypes(options.cells, config.most_nodes, options.pool_seed)
    losses = {norm: standalone_losses(replace(config, norm=norm), cells, data, max(options.windows)) for norm in NORMS}
    quality = -losses["none"]
    records = [
        {"norm": norm, **record, **agreement(record["weights"], quality, cells)}
        for norm in NORMS
        for record in mixture_records(replace(config, norm=norm), cells, data, options.windows)
    ]
    standalone = {norm: values.tolist() for norm, values in losses.items()}
    options.out.write_text(json.dumps({"standalone": standalone, "mixtures": records}, indent=1) + "\n")
    tau = stats.kendalltau(*standalone.values()).statistic
    print(f"{table(records)}\n\nStandalone, with normalisation against without: τ = {tau:.2f}")


def standalone_losses(config: SearchConfig, cells: list[Genotype], data: Any, windows: int) -> Tensor:
    """Nats per character of every cell on the validation part after its own training, `[n]`."""
    task: Any = task_of(config)  # of text
    torch.manual_seed(config.seed)
    norm = None if config.norm == "none" else config.norm
    layer = WeightedDagRNN(config.hidden, config.hidden, cells, coupling="independent", norm=norm)
    model = task.standalone_models(layer, config, data).to(config.device)
    optimizer = torch.optim.Adam(model.parameters(), config.lr, fused=True)
    for _ in steps(model, optimizer, config, data, windows):
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients(model)]).norm(dim=0)
        for gradient in gradients(model):
            gradient.mul_((config.clip / (norms + 1e-6)).clamp(max=1).view(-1, *[1] * (gradient.dim() - 1)))
    return validated(model, config, data)


def mixture_records(config: SearchConfig, cells: list[Genotype], data: Any, marks: list[int]) -> Iterator[Record]:
    """Records of a mixture after some numbers of windows."""
    torch.manual_seed(config.seed)
    model = build_mixture(config, cells, task_of(config), data).to(config.device)
    optimizer = build_optimizer(config, model)
    yield {"windows": 0, **measured(model, config, data)}
    for windows in steps(model, optimizer, config, data, max(marks)):
        if windows - 1 in marks:  # before the step of this window
            yield {"windows": windows - 1, **measured(model, config, data)}
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    yield {"windows": max(marks), **measured(model, config, data)}


def steps(model: Any, optimizer: torch.optim.Optimizer, config: SearchConfig, data: Any, windows: int) -> Iterator[int]:
    """Trains; between gradient and step the caller may look at either, in windows counted from 1."""
    task: Any = task_of(config)  # of text
    streams, h = task.streams(data, "train", config.data_batch).to(config.device), None
    for number in range(windows):
        start = number * config.bptt % (task.steps_per_pass(streams) - config.bptt)
        loss, _, h = model.loss(*task.window(streams, start, config.bptt), h)
        optimizer.zero_grad()
        loss.backward()
        yield number + 1
        optimizer.step()
        h = h.detach()


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def validated(model: Any, config: SearchConfig, data: Any) -> Tensor:
    task: Any = task_of(config)  # of text
    streams = task.streams(data, "valid", config.data_batch).to(config.device)
    return task.measure(model, streams, config.bptt, lambda: None).loss


def measured(model: LanguageModel, config: SearchConfig, data: Any) -> Record:
    return {
        "nats": float(validated(model, config, data)),
        "weights": mixing_weights(model),
        "left_of_a_change": left_of_a_change(model, config, data),
    }


@torch.no_grad()
def left_of_a_change(model: LanguageModel, config: SearchConfig, data: Any) -> list[float]:
    """The remainder of a change of the state after `LATER` steps of the same text."""
    task: Any = task_of(config)  # of text
    streams = task.streams(data, "valid", config.data_batch).to(config.device)
    settling, text = (model._embed(task.window(streams, start, LATER[-1])[0]) for start in (0, LATER[-1]))
    state = model.rnn(settling, None)[1]
    change = CHANGE * state.std() * torch.randn_like(state)
    apart = model.rnn(text, state + change)[0] - model.rnn(text, state)[0]  # [T, M, H]
    return [float(apart[step - 1].norm() / change.norm()) for step in LATER]


def agreement(weights: list[float], quality: Tensor, cells: list[Genotype]) -> Record:
    """Kendall's tau of the weights with quality and with the number of sigmoids; undefined while all are equal."""
    if len(set(weights)) == 1:
        return {"quality": None, "sigmoids": None}
    sigmoids = [cell.activations.count("sigmoid") for cell in cells]
    of = {"quality": quality.tolist(), "sigmoids": sigmoids}
    return {name: float(stats.kendalltau(weights, values).statistic) for name, values in of.items()}


def table(records: list[Record]) -> str:
    """The records as a table in Markdown."""
    early, late = LATER
    lines = [
        "| norm | windows | nats per character | τ with quality | τ with sigmoids | left of a change after "
        f"{early} steps | after {late} |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        tau = ["-" if record[name] is None else f"{record[name]:.2f}" for name in ("quality", "sigmoids")]
        left = [f"{share:.1g}" for share in record["left_of_a_change"]]
        row = [record["norm"], str(record["windows"]), f"{record['nats']:.3f}", *tau, *left]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
