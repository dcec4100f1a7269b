"""Texts for language modelling, as streams of word indices."""

from wenet.data.corpus import Corpus, batchify, encode_held_out, load_corpus

__all__ = ["Corpus", "batchify", "encode_held_out", "load_corpus"]
