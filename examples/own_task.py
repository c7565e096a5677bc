"""Your own task: a function that makes problems, Coconut's curriculum from scratch, then Dropout-GRPO.

    python examples/own_task.py        # about two minutes

A ball is under one of four cups, which are swapped three times. Each step says where the ball is then.
"""

import argparse
import random
from collections.abc import Sequence

import dropout_grpo as dg


def cups(seed: int, count: int) -> list[dg.Problem]:
    """The first ``count`` problems of the stream with this seed."""
    rng, problems = random.Random(seed), []
    for i in range(count):
        place, steps = rng.randint(1, 4), []
        told = [f"ball under {place} ."]
        for _ in range(3):
            a, b = rng.sample(range(1, 5), 2)
            place = {a: b, b: a}.get(place, place)
            told.append(f"swap {a} {b} .")
            steps.append(f"ball under {place}")
        problems.append(dg.Problem(id=i, question=" ".join(told), steps=tuple(steps), answer=str(place)))
    return problems


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, post-train, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/own-task")
    parser.add_argument("--problems", type=int, default=1024, help="with steps; four times as many without")
    parser.add_argument("--epochs", type=int, default=20, help="in each of the curriculum's stages")
    parser.add_argument("--steps", type=int, default=100, help="of GRPO")
    options = parser.parse_args(argv)
    train, more, test = cups(0, options.problems), cups(1, 4 * options.problems), cups(2, 1000)
    epochs = dict.fromkeys(("cot_epochs", "epochs_per_stage", "final_epochs"), options.epochs)
    curriculum = dg.CurriculumConfig(c_thought=1, max_latent_stage=3, batch_size=32, **epochs)
    grpo = dg.GRPOConfig(max_steps=options.steps, prompts_per_step=64, max_completion_length=4)
    run = dg.RunFolder(options.out, "own_task", {"curriculum": curriculum, "grpo": grpo})
    tokenizer = dg.word_tokenizer(dg.words_of(train))
    base = dg.scratch_model(tokenizer, n_embd=64, n_layer=3, n_head=4, n_positions=64)
    dg.add_latent_tokens(base, tokenizer)
    model = dg.LatentModel(base, tokenizer, latent_steps=3)

    def right() -> float:
        said = model.answer([p.question for p in test], max_new_tokens=4)
        return sum(map(dg.is_correct, said, test)) / len(test)

    dg.CurriculumTrainer(model, curriculum, train, run, seed=0).train()
    print(f"after the curriculum {right():.3f} (guessing 0.25)")
    dg.GRPOTrainer(model, dg.exact_answer, grpo, more, run=run).train()
    print(f"after Dropout-GRPO   {right():.3f}")


if __name__ == "__main__":
    main()
