"""From text to batches of token windows.

The parts, in the order in which data flows through them:

- :mod:`mom.data.text_files` reads the user's text files;
- :mod:`mom.data.corpora` turns them, or the sources of the running Python, into documents;
- :mod:`mom.data.tokenizer` loads a tokenizer or trains one on the corpus;
- :mod:`mom.data.token_file` holds tokens on disk, memory-mapped;
- :mod:`mom.data.prepare` tokenises a corpus once into a cache that is never half-written;
- :mod:`mom.data.windows` cuts the tokens into windows and orders them, resumably;
- :mod:`mom.data.module` is what a Lightning Trainer takes.
"""
