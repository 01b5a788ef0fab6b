"""What feature cards cost: tokens a second, peak memory against the length of the corpus, size of the file, time of a look-up.

    python benchmarks/cards.py                                            # the embedded demo
    python benchmarks/cards.py --model DIR/model --transcoders DIR/clt    # e.g. as make_model.py writes them
    python benchmarks/cards.py --csv cards-demo.csv                       # … and into benchmarks/results
    python benchmarks/cards.py --model M --transcoders T --corpus text.txt --tokens 300000 --csv cards-270m.csv

Every length is a process of its own, so that its peak is its own. Texts are sentences of the demo in random order (or random
words), joined to contexts of about 50 tokens, so that hardly any comes twice; or the first documents of `--corpus`. Before
anything is timed, a small corpus is built twice and has to give the same bytes, and what some features of each layer promote
has to be what the whole product with the unembedding, sorted, says.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, machine, write_csv

LENGTHS = (1_000, 4_000, 16_000)  # texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--transcoders")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--texts", type=int, nargs="+", default=LENGTHS, help="lengths of the corpus")
    parser.add_argument(
        "--corpus", type=Path, help="a .txt file with a document on each line, instead of made-up texts"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[300_000], help="lengths of the corpus, with --corpus")
    parser.add_argument("--csv", help="name of a file in benchmarks/results")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one is not None:
        print(json.dumps(one_run(args.model, args.transcoders, args.one, args.corpus)))
        return
    check(args.model, args.transcoders)
    rows = []
    for n_texts in args.tokens if args.corpus else args.texts:
        command = [sys.executable, __file__, "--one", str(n_texts), "--threads", str(args.threads)]
        if args.model:
            command += ["--model", args.model, "--transcoders", args.transcoders]
        if args.corpus:
            command += ["--corpus", str(args.corpus)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    if args.csv:
        write_csv(RESULTS / args.csv, machine(), rows)


def load(model: str | None, transcoders: str | None):  # type: ignore[no-untyped-def]
    from crosstrace.replacement_model import ReplacementModel

    if model is None or transcoders is None:
        return ReplacementModel.demo("cpu")
    return ReplacementModel.from_pretrained(model, transcoders, "cpu")


def make_texts(model, count: int) -> list[str]:  # type: ignore[no-untyped-def]
    from crosstrace.replacement_model import demo
    from crosstrace.replacement_model.demo.corpus import sentences

    draw = random.Random(0)
    if model.name == demo.MODEL_NAME:
        parts = [sentence.text for sentence in sentences(demo.load_facts())]
        return [" ".join(draw.choices(parts, k=6)) for _ in range(count)]
    words = model.token_strings(torch.arange(4, model.description.vocab_size))
    return [" ".join(draw.choices(words, k=50)) for _ in range(count)]


def first_documents(model, corpus: Path, n_tokens: int) -> list[str]:  # type: ignore[no-untyped-def]
    chosen, tokens = [], 0
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            if tokens >= n_tokens:
                break
            chosen.append(line.strip())
            tokens += len(model.tokenizer(line, verbose=False)["input_ids"])
    return chosen


def check(model_name: str | None, transcoders: str | None) -> None:
    model = load(model_name, transcoders)
    same_promoted(model)
    same_bytes(model)


def same_promoted(model) -> None:  # type: ignore[no-untyped-def]
    from crosstrace.replacement_model import direct_logits

    unembedding = model.sites.unembedding.float()
    unembedding -= model.sites.mean_unembedding
    gain = model.sites.gain(model.sites.final_norm)
    for layer, n_features in enumerate(model.transcoders.reader.n_features):
        features = torch.arange(0, n_features, max(1, n_features // 4))
        found = direct_logits(model, layer, features, 10)
        plain = (model.transcoders.decoder_rows(layer, features).float().sum(1) * gain) @ unembedding.T
        for values, expected in ((found.raised, plain), (-found.lowered, -plain)):
            torch.testing.assert_close(values, expected.topk(10).values, rtol=1e-4, atol=1e-5)
        for tokens, values in ((found.promoted, found.raised), (found.suppressed, found.lowered)):
            torch.testing.assert_close(plain.gather(1, tokens), values, rtol=1e-4, atol=1e-5)


def same_bytes(model) -> None:  # type: ignore[no-untyped-def]
    from crosstrace.tracer import build_cards

    texts = make_texts(model, 20)
    with tempfile.TemporaryDirectory() as folder:
        files = [build_cards(model, texts, Path(folder) / f"{i}.safetensors").path.read_bytes() for i in range(2)]
    assert files[0] == files[1], "two runs over the same corpus differ"


def one_run(model_name: str | None, transcoders: str | None, length: int, given: Path | None) -> dict[str, float | int]:
    from crosstrace.replacement_model.memory import peak_resident_bytes
    from crosstrace.tracer import build_cards
    from crosstrace.tracer.cards import build

    model = load(model_name, transcoders)
    texts = first_documents(model, given, length) if given else make_texts(model, length)
    n_texts = len(texts)
    promoting = [0.0, 0.0]
    real = build.write_layer_logits

    def timed(*arguments) -> None:  # type: ignore[no-untyped-def]
        wall, processor = time.perf_counter(), time.process_time()
        real(*arguments)
        promoting[0] += time.perf_counter() - wall
        promoting[1] += time.process_time() - processor

    build.write_layer_logits = timed  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "texts.txt"
        corpus.write_text("\n".join(texts))
        del texts
        build_cards(model, ["w5 w6 Texas is"], Path(folder) / "warm.safetensors")
        promoting[:] = [0.0, 0.0]
        before = peak_resident_bytes()
        wall, processor = time.perf_counter(), time.process_time()
        cards = build_cards(model, corpus, Path(folder) / "cards.safetensors")
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        peak = peak_resident_bytes()
        keys = random.Random(0).choices(list(cards), k=500)
        look_up = time.perf_counter()
        for key in keys:
            cards[key]
        look_up = (time.perf_counter() - look_up) / len(keys)
        return {
            "texts": n_texts,
            "tokens": cards.corpus["tokens"],
            "tokens/s": round(cards.corpus["tokens"] / wall),
            "tokens per second of processor time": round(cards.corpus["tokens"] / processor),
            "minutes": round(wall / 60, 2),
            "of it promoted tokens": round(promoting[0] / 60, 2),
            "processor minutes": round(processor / 60, 2),
            "of them promoted tokens": round(promoting[1] / 60, 2),
            "peak MB": round(peak / 1e6),
            "of it before": round(before / 1e6),
            "features": len(cards),
            "file MB": round(cards.path.stat().st_size / 1e6, 2),
            "look-up ms": round(look_up * 1e3, 3),
        }


if __name__ == "__main__":
    main()
