"""Cells as data: genotypes, the published ones, the space that random ones are drawn from, and comparison."""

from wenet.cells.genotype import Genotype
from wenet.cells.published import PUBLISHED, load_genotype, load_genotypes
from wenet.cells.space import check_activations, random_genotypes

__all__ = ["PUBLISHED", "Genotype", "check_activations", "load_genotype", "load_genotypes", "random_genotypes"]
