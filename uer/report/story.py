"""What a run was and came to, in words and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uer.progress import duration
from uer.report import figures
from uer.report.log import Run


def story(run: Run) -> dict[str, str]:
    """A run at a glance: what it was, how good it came out, how long it took, what comes next."""
    return {"What": describe(run), "How good": verdict(run), "How long": how_long(run), "Next": following(run)}


def describe(run: Run) -> str:
    facts, teacher = run.facts, run.facts.get("teacher", {})
    words = [f"Step {run.last_step:,}" + (f" of {facts['total_steps']:,}" if "total_steps" in facts else "")]
    teacher = facts.get("origin", teacher)
    if teacher:
        words.append(f"{teacher['layers_num']} layers × {teacher['hidden_size']}" +
                     (f" to {facts['target_dim']} ({facts.get('strategy')})" if facts.get("target_dim") else ""))
    if "rows" in facts:
        words.append(f"{facts['processes']} × {facts['micro_steps']} × {facts['rows']} instances of {facts['seq']} "
                     f"tokens a step" + (", bfloat16" if facts.get("bf16") else ""))
    if "step" in run.card:
        words.append(f"newest checkpoint {Path(str(facts['output'])).name}-{run.card['step']}")
    return "; ".join(words) + "."


def verdict(run: Run) -> str:
    """The last figures on held-out text, against the teacher's where the log has them."""
    if not run.dev:
        return "Not known: no evaluation on held-out text in this log. A --dev_path brings it."
    last, best = run.dev[-1], max(run.dev, key=lambda line: line["accuracy"])
    text = f"{100 * last['accuracy']:.1f} % of the masked tokens of held-out text right" \
        if run.figure == "accuracy" else f"{run.figure.capitalize()} {100 * last['accuracy']:.1f} % on held-out text"
    teacher = run.facts.get("teacher_accuracy")
    if teacher:
        text += f", {100 * last['accuracy'] / teacher:.0f} % of what its teacher gets right ({100 * teacher:.1f} %)"
    if best["step"] != last["step"] and best["accuracy"] > last["accuracy"]:
        text += f"; at step {best['step']:,} it was {100 * best['accuracy']:.1f} %"
    return text + "."


def how_long(run: Run) -> str:
    """Time in steps, evaluations apart, over all starts."""
    curve = run.curve("train", "seconds_per_step")
    starts = max(1, sum("start" in line for line in run.model))
    often = "in one go" if starts == 1 else f"in {starts} starts"
    if not curve:
        return f"{run.last_step:,} steps {often}."
    before = [0, *(step for step, _ in curve)]
    total = sum(value * (step - begun) for (step, value), begun in zip(curve, before))
    tokens = run.curve("train", "tokens_per_second")
    rate = f", {figures.last_median(tokens):,.0f} tokens a second at the end" if tokens else ""
    return f"{duration(round(total))} in {run.last_step:,} steps, {often}{rate}."


def following(run: Run) -> str:
    facts = run.facts
    if not facts.get("output"):
        return "convert.py, of the newest checkpoint."
    if run.last_step < facts.get("total_steps", 0):
        return f"The same command with --resume: {facts['total_steps'] - run.last_step:,} steps are left."
    return run.following or f"convert.py --load_model_path {facts['output']}-{run.last_step}"


def figures_of(run: Run) -> dict[str, str]:
    """What a run came to, in words, by what it is; absent where a log does not say."""
    found: dict[str, str] = {"steps": f"{run.last_step:,}"}
    kind, line = ("held-out", run.dev[-1]) if run.dev else ("training", run.train[-1])
    found[f"{kind} loss"] = f"{line['loss']:.3f}"
    found[f"{kind} {run.figure}"] = f"{100 * line['accuracy']:.1f} %"
    if run.dev and run.facts.get("teacher_accuracy"):
        found["of the teacher's"] = f"{100 * line['accuracy'] / run.facts['teacher_accuracy']:.0f} %"
    if run.model:
        first, last = run.model[0], run.model[-1]
        sizes = sum(first["parameters"].values()), sum(last["parameters"].values())
        unit, word = figures.operation_unit(operations(first))
        found["parameters"] = change(*sizes, *((1e6, "M") if sizes[0] >= 1e6 else (1e3, "k")))
        found["operations a step"] = change(operations(first), operations(last), unit, f"{word}FLOP")
        if first.get("on_activations"):
            found["times cheaper than on activations"] = f"{first['on_activations'] / operations(last):.1f}"
    curve = run.curve("train", "seconds_per_step")
    if curve:
        early = figures.first_median(curve) if run.squeeze else figures.last_median(curve)
        found["time of a step"] = change(early, figures.last_median(curve), *((1, "s") if early >= 1 else (1e-3, "ms")))
    if run.squeeze:
        found["squeezed"] = f"step {run.squeeze[-1]['step']:,}"
    if run.fold:
        found["folded"] = f"step {run.fold[-1]['step']:,}"
    return found


def operations(line: dict[str, Any]) -> int:
    """All operations of a step, of a line of kind `model`."""
    return sum(line["operations"].values()) + line.get("composition", 0)


def change(before: float, after: float, unit: float, word: str) -> str:
    """`before → after word`, or one number where they read the same."""
    texts = [f"{number / unit:,.0f}" if number >= 1000 * unit else f"{number / unit:.3g}" for number in (before, after)]
    return " → ".join(dict.fromkeys(texts)) + f" {word}"
