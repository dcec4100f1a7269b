"""Cells as data: genotypes, the published ones, the space that random ones are drawn from, and comparison."""

from wenet.cells.comparison import common_structure, describe_common
from wenet.cells.description import Description
from wenet.cells.genotype import Genotype
from wenet.cells.instances import PROGRAMS, program_of
from wenet.cells.kinds import Cell, cell_from_dict, cell_to_dict, draw_cell, load_cell, load_program, read_cell
from wenet.cells.published import PUBLISHED, load_genotype, load_genotypes
from wenet.cells.source import layer_source, model_source, trained_layer_source, written_step
from wenet.cells.space import cells_in_all, check_activations, mutated, random_genotypes, random_mixed_genotypes
from wenet.cells.traced import cell

__all__ = [
    "PROGRAMS",
    "PUBLISHED",
    "Cell",
    "Description",
    "Genotype",
    "cell",
    "cell_from_dict",
    "cell_to_dict",
    "cells_in_all",
    "check_activations",
    "common_structure",
    "describe_common",
    "draw_cell",
    "layer_source",
    "load_cell",
    "load_genotype",
    "load_genotypes",
    "load_program",
    "model_source",
    "mutated",
    "program_of",
    "random_genotypes",
    "random_mixed_genotypes",
    "read_cell",
    "trained_layer_source",
    "written_step",
]
