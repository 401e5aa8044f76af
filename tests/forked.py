"""A script run as `python script.py …` runs it, but some seconds sooner.

Its process is forked from one that has loaded what takes long.
"""
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

# The loading of each takes a tenth of a second or more. (Not huggingface_hub: as it is loaded, it
# reads which server is the Hub, and tests say which.)
SLOW = ['torch', 'torch._dynamo', 'torch._inductor.config', 'torch.nn.parallel.distributed',
        'matplotlib.figure', 'matplotlib.backends.backend_agg', 'safetensors.torch', 'tokenizers',
        'sentencepiece', 'pyarrow.parquet']
COMPILED = tempfile.TemporaryDirectory()          # our own modules, for the next process


def act(script, args, cwd, folder, env, compiled):
    """In the new process: take on the folder, the streams and the words, and be the script."""
    os.chdir(cwd)
    os.environ.update(env)
    for fd, name in enumerate(('in', 'out', 'err')):
        file = os.open(f'{folder}/{name}', os.O_RDWR)
        os.dup2(file, fd)
        os.close(file)
    sys.stdin = open(0, encoding='utf-8')
    sys.stdout = open(1, 'w', encoding='utf-8')
    sys.stderr = open(2, 'w', encoding='utf-8')
    sys.dont_write_bytecode, sys.pycache_prefix = False, compiled
    sys.argv = [str(script), *args]
    sys.path[0] = str(Path(script).parent)
    for added in filter(None, env.get('PYTHONPATH', '').split(os.pathsep)):
        sys.path.insert(1, added)
        shadowed = {file.stem for file in Path(added).glob('*.py')}
        for name in list(sys.modules):
            if name.partition('.')[0] in shadowed:
                del sys.modules[name]             # it was loaded before it was shadowed
        if Path(added, 'sitecustomize.py').exists():
            importlib.import_module('sitecustomize')
    runpy.run_path(str(script), run_name='__main__')


def run(script, args, cwd, stdin, timeout, env=None):
    """As subprocess.run(text=True, capture_output=True); env is added to the environment."""
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(SLOW)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (('in', stdin), ('out', ''), ('err', '')):
            Path(folder, name).write_text(content, 'utf-8')
        child = server.Process(target=act, args=(script, args, cwd, folder, env or {},
                                                  COMPILED.name))
        child.start()
        try:
            child.join(timeout)
            if child.exitcode is None:
                raise subprocess.TimeoutExpired(args, timeout)
        finally:
            child.kill()
        out = Path(folder, 'out').read_text('utf-8')
        err = Path(folder, 'err').read_text('utf-8')
    return subprocess.CompletedProcess(args, child.exitcode, out, err)
