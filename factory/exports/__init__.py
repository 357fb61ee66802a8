"""A finished run in the file formats of other libraries: `bge-factory export`.

One module for each library; run.py reads the run's folder for all of them, write.py has the order of the work.
"""

from __future__ import annotations

# What each format is, and which library reads it. Here, without any import, for `--help`.
FORMATS = {
    "sentence-transformers": "triplets and n-tuples as Parquet, with reranker scores where there are some; "
    "SentenceTransformerTrainer",
    "flagembedding-lengths": "train.jsonl divided by the longest text's tokens, so that a batch holds texts of like "
    "length; FlagEmbedding's embedder trainers with same_dataset_within_batch",
    "flagembedding-reranker": "rows for FlagEmbedding's reranker trainers",
    "ms-swift": "InfoNCE rows for `swift sft --task_type embedding`, and rows for its rerankers",
    "llama-index": "EmbeddingQAFinetuneDataset as JSON (queries, corpus, relevant_docs); llama-index-core up to 0.14.20 "
    "or llama-index-finetuning",
    "beir": "corpus.jsonl, queries.jsonl, qrels/train.tsv and test.tsv; beir, and whatever reads BEIR's layout",
    "mteb": "the held-out questions as a retrieval task in a folder; mteb",
    "datasets": "train and test questions with their texts; datasets.load_from_disk",
}
