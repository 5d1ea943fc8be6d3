"""Text to batches: corpora, tokenizers, token files, and data modules.

The modules in the order in which data passes through them:

- :mod:`mom.data.rows` reads the rows of JSON Lines, Parquet, and TSV files and of the Hub;
- :mod:`mom.data.text` reads the user's text files;
- :mod:`mom.data.corpora` turns text files, datasets, or the sources of the running Python into documents;
- :mod:`mom.data.tokenizer` loads a tokenizer or trains one on the corpus;
- :mod:`mom.data.token_files` reads and writes memory-mapped tokens on disk;
- :mod:`mom.data.tokenization` tokenizes documents in batches, resumably;
- :mod:`mom.data.cache` lets one process at a time build a folder of the cache;
- :mod:`mom.data.prepare` tokenizes a corpus into that cache, once;
- :mod:`mom.data.windows` cuts tokens into windows;
- :mod:`mom.data.resumable` orders training samples so that training resumes exactly;
- :mod:`mom.data.language_modeling` is the data module of pretraining;
- :mod:`mom.data.examples` is the base of the data modules of fine-tuning, :mod:`mom.data.glue` and
  :mod:`mom.data.xsum`;
- :mod:`mom.data.controls` generates tasks with a known structure.
"""
