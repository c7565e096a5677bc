"""Callbacks with transformers' names and arguments, called by the GRPO loop."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState


class Callbacks:
    """Calls transformers' ``TrainerCallback`` objects and keeps the state that they see.

    The methods called are ``on_train_begin``, ``on_step_begin``, ``on_step_end``, ``on_log``, ``on_evaluate``,
    ``on_save`` and ``on_train_end``. A callback may set ``control.should_training_stop``, ``should_evaluate`` and
    ``should_save``.

    Args:
        callbacks: the callbacks, in the order in which they are called.
        args: the config, passed to every callback.
        model: passed to every callback as ``model``.
    """

    def __init__(self, callbacks: Sequence[TrainerCallback], args: Any, model: Any) -> None:
        self._callbacks, self._args, self._model = callbacks, args, model
        self.state = TrainerState(max_steps=args.max_steps)
        self.control = TrainerControl()

    def begin_step(self, step: int) -> None:
        """Reset what callbacks requested in the previous step, and announce a new step."""
        self.control.should_evaluate = self.control.should_save = False
        self.state.global_step = step - 1
        self.call("on_step_begin")
        self.state.global_step = step

    def call(self, event: str, **more: Any) -> None:
        """Call a method of all callbacks.

        Args:
            event: name of the method, such as ``on_step_end``.
            **more: further arguments that transformers passes to it, such as ``metrics`` or ``logs``.
        """
        if event == "on_log":
            self.state.log_history.append({**more["logs"], "step": self.state.global_step})
        for callback in self._callbacks:
            getattr(callback, event)(self._args, self.state, self.control, model=self._model, **more)
