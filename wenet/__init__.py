"""Recurrent architecture search by weighted networks (Huang and Xiang, 2019)."""

from wenet import genotypes, nn
from wenet.evaluate import evaluate
from wenet.export import export
from wenet.genotype import Genotype, random_genotypes
from wenet.launch_search import SearchResult, resume_search, search
from wenet.launch_train import TrainResult, resume_train, train
from wenet.rank import rank_cells
from wenet.version import VERSION
from wenet_kernels import WenetError, register_activation

__version__ = VERSION

__all__ = [
    "Genotype",
    "SearchResult",
    "TrainResult",
    "WenetError",
    "evaluate",
    "export",
    "genotypes",
    "nn",
    "random_genotypes",
    "rank_cells",
    "register_activation",
    "resume_search",
    "resume_train",
    "search",
    "train",
]
