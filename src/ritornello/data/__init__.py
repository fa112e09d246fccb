"""Data: text from files, tokenizers, and token files that are read in windows."""
