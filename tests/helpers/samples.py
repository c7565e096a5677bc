"""Lines of samples.jsonl for the report's tests."""

from typing import Any

EVIL = "</script><script>document.title='pwned'</script><img src=x onerror=alert(1)>"


def line(i: int, right: bool, *samples: tuple[str, bool], steps: int = 2, **more: Any) -> dict[str, Any]:
    """A line of samples.jsonl; the right answer to problem i is i."""
    return {
        "file": "a.json",
        "id": i,
        "question": f"question {i} of {'ann' if i % 2 else 'tom'}",
        "answer": str(i),
        "steps": steps,
        "plain": f"<<1>>\n### {i if right else 'no'}",
        "plain_correct": right,
        "samples": [text for text, _ in samples],
        "samples_correct": [is_right for _, is_right in samples],
        **more,
    }


SAMPLES = [
    line(0, True, ("### 0", True), ("### 7", False), ("### 0", True)),
    line(1, False, ("### 1", True), ("nothing to read", False), steps=3),
    line(2, True, steps=3),
]
EVALUATION = {"evaluations": [{"file": "a.json", "n": 3, "pass@1": 0.667}]}
