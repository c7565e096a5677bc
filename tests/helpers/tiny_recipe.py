"""A recipe of which every command takes about a second."""

TINY = """
data:
  word_problems: {n_train: 24, n_grpo: 24, n_valid: 4, n_test: 6, max_number: 6, max_steps: 2, distractors: 0}
model: {n_embd: 16, n_layer: 1, n_head: 2}
curriculum: {c_thought: 1, max_latent_stage: 1, cot_epochs: 1, epochs_per_stage: 1, final_epochs: 1, batch_size: 8}
grpo: {max_steps: 2, prompts_per_step: 4, num_generations: 2, save_steps: 1}
evaluation: {num_samples: 2}
bf16: false
"""
