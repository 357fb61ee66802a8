"""bge-factory: a folder of documents in, FlagEmbedding training data and an eval set out."""

__version__ = "0.2.0"
