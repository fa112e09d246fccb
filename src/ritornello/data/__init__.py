"""Data: text from files, tokenizers, token files that are read in windows, and tasks that are generated."""
