"""Texts for language modelling, as streams of word indices."""

from wenet.data.corpus import Corpus, batchify, load_corpus

__all__ = ["Corpus", "batchify", "load_corpus"]
