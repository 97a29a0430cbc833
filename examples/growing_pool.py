"""A held-out task becomes held-in: what changes when its expert joins the pool, and what does not.

    python examples/growing_pool.py [EXPERT]

Takes the embedded pool without one expert (default: trec), asks a question of that expert's task and one of another's,
adds the expert and asks again. Adding retrains nothing, touches no file but the pool's index, and leaves the other
task's answer as it was.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import glider
from glider.demo.pool import DEMO_POOL
from glider.demo.prompts import PROMPTS
from glider.files.disk import sha256


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "trec"
    prompt = next(prompt for prompt in PROMPTS if prompt.expert == name)
    other = next(prompt for prompt in PROMPTS if prompt.expert not in (name, None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool"
        shutil.copytree(DEMO_POOL, path)
        pool = glider.Pool.open(path).remove(name)
        print(f"{prompt.text}\n")
        (before, elsewhere), files = ask(pool, [prompt.text, other.text], f"without {name}"), hashes(path)
        pool = pool.add(name)
        after, still = ask(pool, [prompt.text, other.text], f"with {name}")
        assert hashes(path) == files, "adding an expert must not touch another's files"
        assert after.alpha > before.alpha and max(after.global_scores, key=after.global_scores.get) == name
        assert still.text == elsewhere.text, "a task that had its expert must not notice"
        print(f"alpha went from {before.alpha:g} to {after.alpha:g}; {len(files)} files are as they were.")
        own = str(other.expert)
        weight = f"{own} {elsewhere.usage[own]:.2f} before, {still.usage[own]:.2f} after"
        print(f"The {other.task} next to it: {elsewhere.text!r} before, {still.text!r} after; weight of {weight}.")


def ask(pool: glider.Pool, texts: list[str], title: str) -> list[glider.Answer]:
    """Answer with the pool as it is, and print what guided the first answer."""
    model = glider.load(pool=pool.path)
    answers = model.generate(texts, max_new_tokens=16, trace=True)
    answer = answers[0]
    print(f"{title}: {answer.text!r}, alpha {answer.alpha:g}")
    for expert, score in sorted(answer.global_scores.items(), key=lambda item: -item[1]):
        print(f"    {expert:>16}  global {score:5.2f}   weight {answer.usage[expert]:.2f}")
    print()
    return answers


def hashes(path: Path) -> dict[str, str]:
    """Content of every expert's files."""
    return {str(file): sha256(file) for file in sorted(path.glob("*/*"))}


if __name__ == "__main__":
    main()
