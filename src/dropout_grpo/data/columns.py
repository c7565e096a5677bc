"""Names of the columns of a file or dataset that hold the fields of a problem."""

from dataclasses import dataclass

from dropout_grpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns that are read. The defaults are Coconut's.

    Args:
        question: the column of the question.
        steps: the column of the steps: a list of texts per problem, or one text of calculator marks <<..>>.
        answer: the column of the answer.
    """

    question: str = "question"
    steps: str = "steps"
    answer: str = "answer"

    def __post_init__(self) -> None:
        names = [self.question, self.steps, self.answer]
        if len(set(names)) < len(names) or not all(names):
            raise UserError(f"data.columns: question, steps and answer are {names}; name three different columns")


COCONUT_COLUMNS = Columns()
