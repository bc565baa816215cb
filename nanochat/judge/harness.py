"""This file holds the source that is put behind a completion: it calls the function, and prints what it returns.

It knows the arguments, but nothing of what is right: whatever the completion does, the answers are not where it runs.
Every path in it is absolute, since the completion may define an ``i32`` or a ``println`` of its own.
"""

from collections.abc import Sequence

from nanochat.errors import InputError
from nanochat.problems.problem import Problem
from nanochat.problems.types import absolute
from nanochat.rust.compiler import ENTRY

__all__ = ["module", "printing"]


def module(problem: Problem, body: str, *, seed: int, word: str) -> str:
    """The module in which a body is judged: the prompt, the body with its closing brace, and what calls it.

    Parameters
    ----------
    problem : Problem
        What is asked.
    body : str
        What follows the prompt, to the brace that closes the function.
    seed : int
        Which arguments are drawn.
    word : str
        What is printed behind tests that do not come apart, once they have all been run. No completion can know it.
    """
    if problem.tests:
        calls = f'{problem.tests}\npub fn {ENTRY}() {{\n    main();\n    ::std::println!("{word}");\n}}\n'
    else:
        calls = printing(problem.calls(seed), problem.returns)
    return f"{problem.prompt}{body}\n{calls}"


def printing(expressions: Sequence[str], returns: str) -> str:
    """A function that prints the value of each expression on a line of its own.

    Parameters
    ----------
    expressions : sequence of str
        In Rust.
    returns : str
        Their type, as a signature says it.
    """
    try:
        of = f": [{absolute(returns)}; {len(expressions)}]"
    except InputError:
        # It is found by the compiler.
        of = ""
    lines = ",\n        ".join(expressions)
    # A list, since a statement for each takes the compiler twice as long.
    return f"""pub fn {ENTRY}() {{
    let results{of} = [
        {lines}
    ];
    for result in &results {{
        ::std::println!("{{:?}}", result);
    }}
}}
"""
