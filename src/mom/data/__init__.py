"""From text to batches of token windows.

The parts, in the order in which data flows through them:

- :mod:`mom.data.text` reads the user's text files;
- :mod:`mom.data.corpora` turns them, or the sources of the running Python, into documents;
- :mod:`mom.data.tokenizer` loads a tokenizer or trains one on the corpus;
- :mod:`mom.data.token_files` holds tokens on disk, memory-mapped;
- :mod:`mom.data.tokenization` writes documents into token files, in batches and with marks to go on from;
- :mod:`mom.data.cache` lets one process build a folder of the cache, which is there only when it is whole;
- :mod:`mom.data.prepare` tokenizes a corpus once into that cache;
- :mod:`mom.data.windows` cuts the tokens into windows and orders them, resumably;
- :mod:`mom.data.language_modeling` is what a Lightning Trainer takes.
"""
