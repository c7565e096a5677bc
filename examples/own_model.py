"""Trains your own model to reason in latent space: any decoder-only language model of transformers.

python examples/own_model.py                           # a small random Llama, seconds, no network
python examples/own_model.py --model Qwen/Qwen3-0.6B   # or a folder
"""

import argparse
from collections.abc import Sequence

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import dropout_grpo as dg

PROBLEMS = [
    dg.Problem(id=0, question="ann has 3 figs , buys 4 .", steps=("3 + 4 = 7",), answer="7"),
    dg.Problem(id=1, question="tom has 9 figs , eats 2 , eats 5 .", steps=("9 - 2 = 7", "7 - 5 = 2"), answer="2"),
]


def main(argv: Sequence[str] | None = None) -> None:
    """Wrap, inspect, train, save, load, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub name or folder")
    parser.add_argument("--out", default="runs/own-model")
    parser.add_argument("--epochs", type=int, default=40, help="in each of the curriculum's stages")
    options = parser.parse_args(argv)

    if options.model:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32")
    else:
        tokenizer = dg.word_tokenizer(dg.words_of(PROBLEMS))
        config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
        config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
        model = LlamaForCausalLM(config)

    dg.add_latent_tokens(model, tokenizer)  # Coconut's three; the embeddings grow
    latent = dg.LatentModel(model, tokenizer, latent_steps=2)  # thoughts before an answer
    for site in latent.sites.instances(("residual", "heads")):  # where masks can act; Llama has no dropout modules
        print(f"{site.name:20} {site.count} factors per rollout")

    e = options.epochs
    curriculum = dg.CurriculumConfig(c_thought=1, max_latent_stage=2, cot_epochs=e, epochs_per_stage=e, final_epochs=e)
    run = dg.RunFolder(options.out, "own_model", curriculum)
    dg.CurriculumTrainer(latent, curriculum, PROBLEMS, run, seed=0).train()
    latent.save_pretrained(run.checkpoint("coconut"))  # for `dropout-grpo grpo --checkpoint`, or transformers

    latent = dg.LatentModel.from_pretrained(run.checkpoint("coconut"))
    for problem, said in zip(PROBLEMS, latent.answer([p.question for p in PROBLEMS], 8), strict=True):
        print(f"{problem.question}  {said.strip()}  (right: {problem.answer})")


if __name__ == "__main__":
    main()
