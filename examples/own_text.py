"""Search a cell for a text of your own, then train it and a published one under the same budget.

python examples/own_text.py FOLDER     # with train.txt, valid.txt and test.txt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import wenet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="folder with train.txt, valid.txt and test.txt")
    parser.add_argument("--pool", type=int, default=80, help="cells to search (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=64, help="size of the hidden state (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of training for each cell (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/own-text"), help="default: %(default)s")
    options = parser.parse_args()

    found = wenet.search(
        options.text, preset="quick", pool=options.pool, hidden=options.hidden, out=options.out / "search"
    )
    print(f"found {found.genotype}, weight {found.best.weight:.4f} (uniform {found.best.uniform_weight:.4f})")
    print(found.genotype.draw())

    for name, cell in (("found", found.genotype), ("darts-v2", wenet.genotypes.DARTS_V2)):
        trained = wenet.train(
            options.text,
            cell=cell,
            preset="quick",
            hidden=options.hidden,
            epochs=options.epochs,
            out=options.out / name,
        )
        print(f"{name}: perplexity {trained.valid:.1f} valid, {trained.test:.1f} test")


if __name__ == "__main__":
    main()
