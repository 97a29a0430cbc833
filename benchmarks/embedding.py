"""What embedding one query costs: sentence-transformers against the direct forward pass, in processor time, in turn.

python benchmarks/embedding.py [--words 3 12 30 60] [--queries 30] [--threads 1]
"""

import argparse
import random
import sys
import time
from statistics import quantiles

import torch
from sentence_transformers import SentenceTransformer

from glider.cli.terminal import exit_code
from glider.demo.base import embedder_directory
from glider.instructions.encoder import encoder_of
from glider.instructions.inputs import edges

WORDS = ("the", "man", "walks", "a", "river", "question", "premise", "answer", "yes", "or", "no", "sentiment", "review")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, nargs="+", default=[3, 12, 30, 60])
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = SentenceTransformer(str(embedder_directory()), device="cpu")
    encoder, chance = encoder_of(model), random.Random(0)
    assert encoder is not None
    for words in arguments.words:
        texts = [edges(" ".join(chance.choices(WORDS, k=words))) for _ in range(arguments.queries)]
        tokens = len(model.tokenizer(texts[0])["input_ids"])
        clocks: tuple[list[float], list[float]] = ([], [])
        for text in texts:
            start = time.process_time()
            model.encode([text], convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
            middle = time.process_time()
            encoder([text])
            clocks[0].append(1000 * (middle - start))
            clocks[1].append(1000 * (time.process_time() - middle))
        figures = ["{1:.2f} [{0:.2f}, {2:.2f}]".format(*quantiles(clock, n=4)) for clock in clocks]
        print(f"{tokens} tokens: sentence-transformers {figures[0]} ms, direct {figures[1]} ms")


if __name__ == "__main__":
    sys.exit(exit_code(main))
