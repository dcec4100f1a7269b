"""Published cells by name, and cells from files, run folders and text."""

from wenet.cells.published import (
    DARTS_V1,
    DARTS_V2,
    ENAS,
    ENAS_LM,
    NAONET,
    NAONET_WS,
    PUBLISHED,
    RHN,
    load_genotype,
    load_genotypes,
)

__all__ = [
    "DARTS_V1",
    "DARTS_V2",
    "ENAS",
    "ENAS_LM",
    "NAONET",
    "NAONET_WS",
    "PUBLISHED",
    "RHN",
    "load_genotype",
    "load_genotypes",
]
