"""Turns the last hidden state into the next input embedding.

The last hidden state is ``hidden_states[-1]`` of transformers, which Coconut and CODI also feed back. It is taken after
the final norm if the model has one (GPT-2, Llama, Qwen, Gemma, GPT-NeoX, OPT), after the last layer's own norm in a
post-norm model, and projected to the embeddings' width if that differs (OPT-350m). The thought enters the model as
``inputs_embeds``. Gemma's embedding module scales embeddings by the square root of the width; thoughts enter after this
scaling, so they are not scaled.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from dropout_grpo.errors import UserError


class HiddenStateThought(nn.Module):
    """Coconut: the last hidden state itself."""

    kind = "hidden_state"

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, 1, D] -> [B, 1, D]."""
        return hidden


class PauseThought(nn.Module):
    """The control: one learned vector replaces every hidden state, so steps add compute but carry no information.

    Goyal et al., "Think before you speak: training language models with pause tokens" (2024); Coconut's
    "pause as thought" ablation.

    Args:
        start: the vector's initial value, [D]; it keeps the dtype.
    """

    kind = "pause"

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(start.detach().clone().view(1, 1, -1))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, 1, D] -> the learned vector for every row, [B, 1, D]."""
        return self.vector.to(hidden.dtype).expand_as(hidden)


class ProjectionThought(nn.Module):
    """CODI: the last hidden state through linear, GELU, linear, layer norm (Shen et al. 2025, arXiv 2502.21074).

    Layout and parameter names are those of CODI's ``prj`` (its layer 0 is a dropout; here noise is an argument). As in
    CODI, it starts from torch's default initialisation and not near the identity, since a GELU between two linear maps
    can only represent the identity with twice the width. The layer norm gives thoughts the scale of a normed hidden
    state.

    Args:
        width: D, the width of thoughts and embeddings.
        prj_dim: width between the two linear maps.
        dtype: dtype of the parameters; the random numbers are the same in every dtype.
        seed: seed of the initialisation.
    """

    kind = "projection"

    def __init__(self, width: int, prj_dim: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        self.prj_dim = prj_dim
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # torch initialises from the global generator
            torch.default_generator.manual_seed(seed)
            layers: list[tuple[str, nn.Module]] = [
                ("1", nn.Linear(width, prj_dim)),
                ("2", nn.GELU()),
                ("3", nn.Linear(prj_dim, width)),
                ("ln", nn.LayerNorm(width)),
            ]
        self.prj = nn.Sequential(OrderedDict(layers)).to(dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, 1, D] -> [B, 1, D]."""
        projected: Tensor = self.prj(hidden)
        return projected.to(hidden.dtype)


Thought = HiddenStateThought | PauseThought | ProjectionThought
KINDS = (HiddenStateThought.kind, PauseThought.kind, ProjectionThought.kind)


def build_thought(kind: str, latent: Tensor, *, prj_dim: int | None = None, seed: int = 0) -> Thought:
    """Build a thought module by its kind.

    Args:
        kind: one of ``KINDS``.
        latent: the latent token's input embedding [D]: it gives the width, the dtype, and the initial value of a pause.
        prj_dim: inner width of a projection; D when None, as in CODI's own settings.
        seed: seed of a projection's initialisation.

    Raises:
        UserError: the kind is unknown.
    """
    if kind == HiddenStateThought.kind:
        return HiddenStateThought()
    if kind == PauseThought.kind:
        return PauseThought(latent)
    if kind == ProjectionThought.kind:
        width = latent.shape[-1]
        return ProjectionThought(width, prj_dim or width, dtype=latent.dtype, seed=seed)
    raise UserError(f"thought {kind!r} is unknown; known are {', '.join(KINDS)}.")
