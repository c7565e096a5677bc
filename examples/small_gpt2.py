"""Makes a small GPT-2 with random weights and a byte-level tokenizer learnt from a problem file.

    python examples/small_gpt2.py gsm8k_train.jsonl --out runs/small-gpt2

The result is a plain Hugging Face folder. Train it with the command line:

    dropout-grpo sft --model.name_or_path runs/small-gpt2 --data.train gsm8k_train.jsonl --data.valid valid.json
"""

import argparse
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import dropout_grpo as dg

EOS = "<|endoftext|>"  # GPT-2's


def bpe_tokenizer(problems: Sequence[dg.Problem], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as in GPT-2: it encodes and decodes any text, also text unlike the file it was learnt from."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ("\n".join((p.question, *p.steps, f"### {p.answer}")) for p in problems)
    backend.train_from_iterator(texts, trainer, length=len(problems))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, clean_up_tokenization_spaces=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Learn the tokenizer, make the model, save both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", help="GSM8K as published, or any other problem file")
    parser.add_argument("--out", default="runs/small-gpt2")
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--positions", type=int, default=512)
    options = parser.parse_args(argv)

    tokenizer = bpe_tokenizer(dg.load_problems(options.problems), options.vocab_size)
    model = dg.scratch_model(
        tokenizer, n_embd=options.width, n_layer=options.layers, n_head=4, n_positions=options.positions
    )
    tokenizer.save_pretrained(options.out)
    model.save_pretrained(options.out)
    print(f"{options.out}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


if __name__ == "__main__":
    main()
