"""How much code one training step is: the functions of ours that run in each, and their lines.

    python tests/step_weight.py 30 train.py --out_dir=… (and flags for 30 small, uncompiled steps)

Counted is what is called, directly or not, from the longest `while` loop of the script, and so
often as there are steps. The loop counts with its own lines. Another thread does not count.
"""
import ast
import runpy
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = {str(path) for path in [*ROOT.glob('*.py'), *ROOT.glob('parts/*.py')]}


def longest_loop(path):
    loops = [node for node in ast.walk(ast.parse(path.read_text('utf-8')))
             if isinstance(node, ast.While)]
    return max(loops, key=n_lines)


def n_lines(node):
    return node.end_lineno - node.lineno + 1


def count_calls(script, args):
    """Run a script; {(file, first line): calls from its longest loop} of our functions."""
    calls = Counter()
    path = str(ROOT / script)
    loop = longest_loop(ROOT / script)

    def profile(frame, event, arg):
        code = frame.f_code
        if event != 'call' or code.co_filename not in OURS:
            return
        caller = frame.f_back
        while caller is not None:
            in_loop = loop.lineno <= caller.f_lineno <= loop.end_lineno
            if in_loop and caller.f_code.co_filename == path:
                calls[code.co_filename, code.co_firstlineno] += 1
                return
            caller = caller.f_back

    sys.path.insert(0, str(ROOT))
    sys.argv = [script, *args]
    sys.setprofile(profile)
    try:
        runpy.run_path(path, run_name='__main__')
    except SystemExit as end:
        assert not end.code
    sys.setprofile(None)
    return calls


def main(steps, script, *args):
    functions = {f'{script}: the loop': n_lines(longest_loop(ROOT / script))}
    for (file, first_line), n_calls in count_calls(script, args).items():
        path = Path(file)
        for node in ast.walk(ast.parse(path.read_text('utf-8'))):
            if not isinstance(node, ast.FunctionDef) or n_calls < int(steps) - 1:
                continue
            begins = [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]
            if first_line in begins:
                where = f'{path.relative_to(ROOT)}: {node.name}, line {node.lineno}'
                functions[where] = n_lines(node)
    for where, lines in sorted(functions.items()):
        print(f'{lines:4}  {where}')
    files = {where.partition(':')[0] for where in functions}
    print(f'{len(functions) - 1} functions in {len(files)} files run in every step: '
          f'{sum(functions.values())} lines')


if __name__ == '__main__':
    main(*sys.argv[1:])
