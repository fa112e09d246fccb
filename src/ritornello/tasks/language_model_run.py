"""A trained language model in use: it writes text and scores it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from ritornello.data.corpus import Corpus, encode_text
from ritornello.data.tokenizer import StreamDecoder, Tokenizer
from ritornello.errors import ArgumentError, DataError
from ritornello.models.language_model import LanguageModel
from ritornello.models.ngram import NGramModel
from ritornello.models.predictor import LANES, Predictor
from ritornello.models.sampling import generate
from ritornello.training.run import Run


class LanguageModelRun:
    """A trained language model: writes text and scores it. Made by `train` or `ritornello.load`.

    Attributes:
        run: its folder and configuration.
        model: the network, or the n-gram model.
        tokenizer: between text and token ids.
        interrupted: whether Ctrl-C ended its training early.
        columns: the heading and format of each score.
        scoring: the options of `evaluate`.
    """

    columns: ClassVar[dict[str, tuple[str, str]]] = {
        "loss": ("nats/token", ".4f"),
        "bits_per_character": ("bits/character", ".4f"),
        "perplexity": ("perplexity", ".3f"),
        "tokens": ("tokens", ",.0f"),
    }
    scoring: ClassVar[tuple[str, ...]] = ("lanes", "window", "most")

    def __init__(self, run: Run, model: LanguageModel | NGramModel, tokenizer: Tokenizer) -> None:
        self.run = run
        self.model = model
        self.tokenizer = tokenizer
        self.interrupted = False
        self._predictor = Predictor(model, tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.embed.weight.device if isinstance(self.model, LanguageModel) else torch.device("cpu")

    def parts(self) -> list[str]:
        """Which parts of the run's own text there are."""
        return list(Corpus.open(self.run.path).parts)

    def stream(
        self, prompt: str = "", *, count: int = 1, length: int = 500, until: str = "", **options: Any
    ) -> Iterator[list[str]]:
        """Draws texts, a token of each at a time.

        Args:
            prompt: what all texts begin with. Default: nothing, a text begins as after the end of another.
            count: how many texts, drawn side by side.
            length: tokens to draw for each, fewer where the end symbol is drawn.
            until: end a text once what was drawn holds this; what follows it is cut off.
            **options: temperature (1), top_k (0: all), top_p (1: all) and seed (0), as in `models.narrow`.

        Yields:
            What each text has grown by, `count` pieces of text; "" for one that has ended.

        Raises:
            DataError: the prompt has symbols that the vocabulary lacks. ArgumentError: an option out of range.
        """
        decoders = [StreamDecoder(self.tokenizer) for _ in range(count)]
        tails = [""] * count
        ended = [False] * count
        forbidden = [] if self.tokenizer.unknown is None else [self.tokenizer.unknown]
        drawn = generate(
            self._predictor.advance,
            self._prompt(prompt),
            count=count,
            length=length,
            end=self.tokenizer.end,
            forbidden=forbidden,
            device=self.device,
            **options,
        )
        for tokens in drawn:
            pieces = []
            for number, token in enumerate(tokens.tolist()):
                piece = "" if ended[number] else decoders[number].push(token)
                ended[number] |= token == self.tokenizer.end
                if until and piece:
                    seen = tails[number] + piece
                    if (place := seen.find(until)) >= 0:
                        piece = seen[len(tails[number]) : place + len(until)]
                        ended[number] = True
                    tails[number] = seen[-len(until) :]
                pieces.append(piece)
            yield pieces
            if all(ended):
                return
        yield ["" if done else decoder.finish() for done, decoder in zip(ended, decoders, strict=True)]

    def sample(self, prompt: str = "", *, count: int = 1, **options: Any) -> str | list[str]:
        """Draws texts at once; arguments as in `stream`.

        Returns:
            The text, prompt included; with `count` above 1 a list of texts.
        """
        texts = [prompt] * count
        for pieces in self.stream(prompt, count=count, **options):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        return texts[0] if count == 1 else texts

    def evaluate(
        self,
        text: str | Path | Sequence[str | Path],
        *,
        lanes: int = LANES,
        window: int = 0,
        most: int = 0,
    ) -> dict[str, float]:
        """Scores files or folders of text, or a part of the run's own text.

        Args:
            text: paths, or "train", "valid" or "test".
            lanes: parts of the text that a recurrent model reads side by side, each but the first after a warm-up of
                512 unscored tokens. 1 reads it as one stream, exactly, and takes longer.
            window: score windows of this many tokens that know nothing of each other; 0 (default) carries the state.
            most: score no more than this many tokens, from the beginning; 0 (default) scores all.

        Returns:
            loss (nats a token), bits_per_character, perplexity, tokens (predicted: all but the first).

        Raises:
            DataError: a file that is missing, empty, not UTF-8 or of symbols that the vocabulary lacks.
            ArgumentError: lanes below 1, a negative window, or fewer than two tokens.
        """
        if lanes < 1 or window < 0 or most < 0 or most == 1:
            raise ArgumentError(
                f"lanes is {lanes}, window {window} and most {most}; lanes must be at least 1, window at least 0, and "
                "most 0 (all) or at least 2."
            )
        how = {"lanes": lanes, "window": window, "most": most}
        if isinstance(text, str) and text in ("train", "valid", "test"):
            corpus = Corpus.open(self.run.path)
            if text not in corpus.parts:
                raise DataError(f"{self.run.path} has no {text} part; it has {', '.join(corpus.parts)}.")
            return self._predictor.score(corpus.parts[text], corpus.info[text].characters, **how)
        paths = [text] if isinstance(text, str | Path) else list(text)
        with tempfile.TemporaryDirectory() as folder:
            tokens, info = encode_text(self.tokenizer, paths, folder, self.run.section("text")["documents"])
            return self._predictor.score(tokens, info.characters, **how)

    def _prompt(self, prompt: str) -> list[int]:
        lacking = self.tokenizer.lacking(prompt)
        if lacking and not self.tokenizer.lacking(f" {prompt}"):  # its first word stands only after a space
            prompt, lacking = f" {prompt}", []
        if lacking:
            raise DataError(
                f"The vocabulary lacks {', '.join(map(repr, lacking))} of the prompt; "
                "leave that out, or train at level bpe."
            )
        if prompt:
            return self.tokenizer.encode(prompt).tolist()
        if self.tokenizer.end is not None:
            return [self.tokenizer.end]
        return [self.tokenizer.symbols.index("\\n") if "\\n" in self.tokenizer.symbols else 0]
