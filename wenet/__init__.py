"""Recurrent architecture search by weighted networks (Huang and Xiang, 2019)."""

from wenet import estimators, genotypes, nn, programs
from wenet.api import rank_cells, resume_search, resume_train, search, train
from wenet.cells import Genotype, cell, random_genotypes
from wenet.exporting.formats import export
from wenet.results import SearchResult, TrainResult, load
from wenet.training.held_out import evaluate
from wenet.version import VERSION
from wenet_kernels import WenetError, register_activation

__version__ = VERSION

__all__ = [
    "Genotype",
    "SearchResult",
    "TrainResult",
    "WenetError",
    "cell",
    "estimators",
    "evaluate",
    "export",
    "genotypes",
    "load",
    "nn",
    "programs",
    "random_genotypes",
    "rank_cells",
    "register_activation",
    "resume_search",
    "resume_train",
    "search",
    "train",
]
